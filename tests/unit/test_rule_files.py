"""Files of rules: what is written is read again, and every fault is told with its row."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.fleet import files
from shared.fleet.files import FileError, Format, format_of, read, read_sqlite, write
from shared.mail.rule import Rule, RuleError, make_rule
from tests.unit.strategies import domains, hostile_text, target_texts

Text: TypeAlias = Literal["csv", "yaml", "json"]
TEXTS: tuple[Text, ...] = ("csv", "yaml", "json")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = datetime(2026, 1, 31, 18, tzinfo=UTC)
KNOWN = (
    "known are lookup_key, target_host, comment, transport, tls, expires_at, enabled, share,"
    " created_at, updated_at, version"
)
EXPECTED = [
    make_rule("a.com", "b.com,c.com"),
    make_rule(
        "*.a.com",
        "d.com",
        comment='ticket 7, "urgent" now',
        transport="smtp",
        tls="none",
        expires_at=LATER,
        enabled=False,
        share=10,
    ),
    make_rule("*", "https://e.com"),
]

CSV = """\
lookup_key,target_host,comment,transport,tls,expires_at,enabled,share,version,created_at,updated_at
A.com.,"b.com, c.com",,,,,,,7,yesterday,

*.a.com,d.com,"ticket 7, ""urgent"" now",smtp,none,2026-01-31T18:00Z,No,10%,,,
*,https://e.com,,auto,,,TRUE,100,,,
"""
JSON = r"""[
  {"lookup_key": "A.com.", "target_host": "b.com, c.com", "version": 7, "created_at": "yesterday"},
  {"lookup_key": "*.a.com", "target_host": "d.com", "comment": "ticket 7, \"urgent\" now", "transport": "smtp",
   "tls": "none", "expires_at": "2026-01-31T19:00:00+01:00", "enabled": false, "share": 10},
  {"lookup_key": "*", "target_host": "https://e.com", "comment": null, "transport": null, "tls": "",
   "expires_at": null, "enabled": 1, "share": null}
]"""
YAML = """\
# a comment
- lookup_key: A.com.
  target_host: b.com, c.com
  version: 7
  created_at: 2020-01-01
- lookup_key: "*.a.com"
  target_host: d.com
  comment: 'ticket 7, "urgent" now'
  transport: smtp
  tls: none
  expires_at: 2026-01-31T18:00:00Z
  enabled: off
  share: 10%
- {lookup_key: '*', target_host: "https://e.com", comment: ~, transport: null, tls: '', enabled: yes, share: 100}
"""


def refusal(data: bytes | str, form: Format) -> str:
    """Return why the file is not taken."""
    with pytest.raises(FileError) as caught:
        read(data.encode() if isinstance(data, str) else data, form, now=NOW)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("rules.csv", b"", "csv"),
        ("/a/RULES.YAML", b"", "yaml"),
        ("rules.yml", b"", "yaml"),
        ("rules.json", b"", "json"),
        ("madmail.db", b"", "sqlite"),
        ("madmail.sqlite", b"", "sqlite"),
        ("rules.csv", b"SQLite format 3\0\x10", "sqlite"),
        ("-", b"SQLite format 3\0", "sqlite"),
    ],
)
def test_the_format_is_told_by_the_magic_or_the_name(name: str, head: bytes, expected: Format) -> None:
    """A database is known whatever its name."""
    assert expected == format_of(name, head)


@pytest.mark.parametrize("name", ["-", "rules", "rules.txt", "csv", ".csv"])
def test_an_unknown_format_is_asked_for(name: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(FileError) as caught:
        format_of(name, b"a,b")
    assert f"{name!r} does not tell what it holds: say so with --format csv, yaml, json or sqlite" == str(caught.value)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("csv", CSV),
        ("csv", "\ufeff" + CSV),
        ("csv", CSV.replace("\n", "\r\n")),
        ("json", JSON),
        ("json", "\ufeff" + JSON),
        ("json", f'{{"rules": {JSON}, "total": 3}}'),
        ("json", f'{{"overrides": {JSON}}}'),
        ("json", f'{{"ok": true, "command": "endpoint-cache list", "data": {{"rules": {JSON}, "total": 3}}}}'),
        ("yaml", YAML),
        ("yaml", "\ufeff" + YAML),
        ("yaml", "---\nrules:\n" + YAML + "...\n"),
        ("yaml", "ok: true\ndata:\n  overrides:\n  " + YAML.replace("\n", "\n  ")),
        ("yaml", JSON),
    ],
)
def test_every_format_says_the_same(form: Format, text: str) -> None:
    """Defaults, normal forms and all spellings of a value."""
    assert EXPECTED == read(text.encode(), form, now=NOW)


@pytest.mark.parametrize(("form", "text"), [("csv", "lookup_key,target_host\n"), ("json", "[]"), ("yaml", "[]")])
def test_a_list_may_be_empty(form: Format, text: str) -> None:
    """It is the caller who says whether nothing is enough."""
    assert [] == read(text.encode(), form, now=NOW)


VALUES = [
    ("lookup_key", "a..b", "the key 'a..b' is malformed: 'a..b' is not a domain name"),
    ("lookup_key", "", "the key is empty: name a domain (a.com), its subdomains (*.a.com), an address or *"),
    ("target_host", "", "the target is malformed: the target is empty: name a host, an IP address or an https:// URL"),
    ("target_host", "b.com,", "the target is malformed: 'b.com,' has an empty target between its commas"),
    ("target_host", "A.com", "the rule a.com -> A.com points at itself: mail would come back to where it is"),
    ("comment", "a\x7f", "the comment must be one line of at most 1000 characters"),
    ("comment", "a" * 1_001, "the comment must be one line of at most 1000 characters"),
    ("transport", "lmtp", "transport must be auto, https or smtp, not 'lmtp'"),
    ("transport", "x" * 99, f"transport must be auto, https or smtp, not {'x' * 80!r}..."),
    ("tls", "strict", "tls must be verify, encrypt or none, not 'strict'"),
    ("expires_at", "2h", "expires_at must be a time with its zone, such as 2026-01-31T18:00Z, not '2h'"),
    ("expires_at", "9" * 5_000 + "d",
     f"expires_at must be a time with its zone, such as 2026-01-31T18:00Z, not {'9' * 80!r}..."),
    ("expires_at", "soon",
     "expires_at: 'soon' is neither a span such as 2h or 5d nor a time such as 2026-01-31T18:00Z"),
    ("expires_at", "2026-02-01T18:00",
     "expires_at: the time '2026-02-01T18:00' has no zone: write 2026-02-01T18:00Z for UTC"),
    ("expires_at", "2026-01-31T12:00Z",
     "expires_at: the time '2026-01-31T12:00Z' is past: the rule would end before it began"),
    ("enabled", "maybe", "enabled must be true or false, not 'maybe'"),
    ("share", "0", "share must be a whole number from 1 to 100, not '0'"),
    ("share", "101%", "share must be a whole number from 1 to 100, not '101%'"),
    ("share", "9.5", "share must be a whole number from 1 to 100, not '9.5'"),
    ("share", "-1", "share must be a whole number from 1 to 100, not '-1'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "sentence"), VALUES)
@pytest.mark.parametrize("form", TEXTS)
def test_a_bad_value_is_told_in_every_format(form: Text, name: str, value: str, sentence: str) -> None:
    """One sentence that says what would be right."""
    fields = {"lookup_key": "a.com", "target_host": "b.com"} | {name: value}
    if form == "csv":
        assert f"row 2: {sentence}" == refusal(f"{','.join(fields)}\n{_cells(fields)}\n", "csv")
    else:
        assert f"row 1: {sentence}" == refusal(msgspec.json.encode([fields]).replace(b"\x7f", rb"\u007f"), form)


def _cells(fields: dict[str, str]) -> str:
    return ",".join(f'"{value}"' for value in fields.values())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ('"lookup_key": 7', "lookup_key must be text, not a number: put it in quotes"),
        ('"lookup_key": null', "lookup_key is missing"),
        ('"target_host": ["b.com"]', "target_host must be text, not a list"),
        ('"target_host": {"a": 1}', "target_host must be text, not an object"),
        ('"comment": true', "comment must be text, not a boolean: put it in quotes"),
        ('"comment": 1.5', "comment must be text, not a number: put it in quotes"),
        ('"transport": 25', "transport must be auto, https or smtp, not 25"),
        ('"transport": ["smtp"]', "transport must be auto, https or smtp, not a list"),
        ('"tls": false', "tls must be verify, encrypt or none, not false"),
        ('"enabled": 2', "enabled must be true or false, not 2"),
        ('"enabled": 1.5', "enabled must be true or false, not 1.5"),
        ('"enabled": {}', "enabled must be true or false, not an object"),
        ('"share": true', "share must be a whole number from 1 to 100, not true"),
        ('"share": 9.5', "share must be a whole number from 1 to 100, not 9.5"),
        ('"share": 1234', "share must be a whole number from 1 to 100, not 1234"),
        ('"expires_at": 5', "expires_at must be a time with its zone, such as 2026-01-31T18:00Z, not 5"),
        ('"expires_at": []', "expires_at must be a time with its zone, such as 2026-01-31T18:00Z, not a list"),
        ('"target": "b.com"', f"the field 'target' is unknown: {KNOWN}"),
        ('"tls": 1, "share": 0, "target_host": "-"',
         ("tls must be verify, encrypt or none, not 1; share must be a whole"
         " number from 1 to 100, not 0; the target is malformed: '-' is neither a host, nor an IP address, nor a URL:"
         " '-' is not a domain name")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_value_of_a_wrong_type_is_told(form: Format, fields: str, sentence: str) -> None:
    """Only these two formats have types."""
    name = fields.split('"')[1]
    whole = {"lookup_key": '"lookup_key": "a.com"', "target_host": '"target_host": "b.com"'}
    text = ", ".join([*(value for key, value in whole.items() if f'"{key}"' not in fields), fields])
    assert name in text
    assert f"row 2: {sentence}" == refusal(f'[{{"lookup_key": "x.com", "target_host": "y.com"}}, {{{text}}}]', form)


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_an_endless_number_is_a_fault(form: Format) -> None:
    """Python refuses to print it, with a ValueError of its own."""
    for name in ("share", "enabled", "transport", "expires_at", "comment"):
        text = f'[{{"lookup_key": "a.com", "target_host": "b.com", "{name}": %s}}]'
        assert refusal(text % ("1" * 40), form).startswith(f"row 1: {name} must be ")
        assert refusal(text % ("1" * 5_000), form)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("comment: 2026-01-01", "comment must be text, not a date: put it in quotes"),
        ("comment: 2026-01-01T10:00:00Z", "comment must be text, not a date: put it in quotes"),
        ("comment: no", "comment must be text, not a boolean: put it in quotes"),
        ("tls: [none]", "tls must be verify, encrypt or none, not a list"),
        ("expires_at: 2026-02-01", "expires_at: the time '2026-02-01' has no zone: write 2026-02-01T00:00Z for UTC"),
        ("expires_at: 2026-02-01 10:00:00",
         "expires_at: the time '2026-02-01T10:00:00' has no zone: write 2026-02-01T10:00Z for UTC"),
        ("expires_at: 2026-01-01 10:00:00Z",
         "expires_at: the time '2026-01-01T10:00:00+00:00' is past: the rule would end before it began"),
        ("expires_at: 2026-01-45",
         "expires_at: '2026-01-45' is neither a span such as 2h or 5d nor a time such as 2026-01-31T18:00Z"),
        ("no: 1", f"the field 'no' is unknown: {KNOWN}"),
    ],
)  # fmt: skip
def test_what_yaml_makes_of_a_plain_word_is_told(text: str, sentence: str) -> None:
    """`no` is a boolean there and 2026-01-01 a date."""
    assert f"row 1: {sentence}" == refusal(f"- lookup_key: a.com\n  target_host: b.com\n  {text}\n", "yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty: its first row must name the columns, lookup_key and target_host at least"),
        ("\n\n", "the file is empty: its first row must name the columns, lookup_key and target_host at least"),
        ("lookup_key\na.com\n",
         "row 1: the column target_host is missing: the first row names the columns, separated by commas"),
        ("a.com,b.com\n", ("row 1: the columns lookup_key and target_host are missing: the first row names the columns,"
         f" separated by commas; the column 'a.com' is unknown: {KNOWN}; the column 'b.com' is unknown: {KNOWN}")),
        ("\nlookup_key,target_host,prio\n", f"row 2: the column 'prio' is unknown: {KNOWN}"),
        ("lookup_key,target_host,\n", f"row 1: the column '' is unknown: {KNOWN}"),
        ("lookup_key,target_host,tls,tls\n", "row 1: the column tls stands there twice"),
        ("lookup_key,target_host\na.com,b.com,c.com\nd.com\n",
         "row 2: the header has 2 columns, but the row 3\nrow 3: the header has 2 columns, but the row 1"),
        ('lookup_key,target_host\n\n"a\n.com",b.com\nc..d,e.com',
         ("row 3: the key 'a\\n.com' is malformed: 'a\\n.com' is not a domain name\n"
         "row 5: the key 'c..d' is malformed: 'c..d' is not a domain name")),
        ('lookup_key,target_host\nc..d,e.com\na.com,"b.com\n',
         ("row 2: the key 'c..d' is malformed: 'c..d' is not a domain name\n"
         "row 3: the row is no CSV, perhaps for a quote that is not closed: unexpected end of data")),
        ('lookup_key,target_host\na.com,"b"c\n',
         "row 2: the row is no CSV, perhaps for a quote that is not closed: ',' expected after '\"'"),
    ],
)  # fmt: skip
def test_a_csv_file_at_fault_is_told(text: str, message: str) -> None:
    """A row is counted by the line it begins in, as an editor shows it."""
    assert message == refusal(text, "csv")


NO_LIST = 'the file holds no rules: it must be a list of objects, or an object with that list as "rules"'


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize(
    "text",
    ["null", "7", '"a"', "{}", '{"rules": {}}', '{"rules": [], "overrides": []}', '{"data": {"data": {"rules": []}}}',
     '{"ok": false, "error": {"kind": "away"}}'],
)  # fmt: skip
def test_a_file_without_a_list_is_told(form: Format, text: str) -> None:
    """Such as the output of another command."""
    assert refusal(text, form) == NO_LIST


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_an_item_that_is_no_object_is_told(form: Format) -> None:
    """A list of keys is a likely mistake."""
    assert refusal('["a.com", null, [], {}]', form) == (
        "row 1: a rule is an object with lookup_key and target_host, not text\n"
        "row 2: a rule is an object with lookup_key and target_host, not nothing\n"
        "row 3: a rule is an object with lookup_key and target_host, not a list\n"
        "row 4: lookup_key and target_host are missing"
    )


@pytest.mark.parametrize(
    ("data", "form", "message"),
    [
        (b"a\n\xff", "csv", "line 2: the byte 0xff is not UTF-8: save the file as UTF-8"),
        (b"a\n\xff", "json", "line 2: the byte 0xff is not UTF-8: save the file as UTF-8"),
        (b"a\n\xff", "yaml", "line 2: the byte 0xff is not UTF-8: save the file as UTF-8"),
        ("lookup_key".encode("utf-16"), "csv", "line 1: a NUL byte is no text: save the file as UTF-8"),
        (b"[\n\n\0]", "json", "line 3: a NUL byte is no text: save the file as UTF-8"),
        (b"- \0", "yaml", "line 1: a NUL byte is no text: save the file as UTF-8"),
        (b"[]", "sqlite", "a database is read from its place on the disk, not from a stream: name its path"),
        (b"", "json", "the file is malformed JSON: Input data was truncated"),
        (b'[{"lookup_key', "json", "the file is malformed JSON: Input data was truncated"),
        (b"[] []", "json", "the file is malformed JSON: trailing characters (byte 4)"),
        (b"[" * 1_000_000, "json", "the file is nested deeper than a list of rules can be"),
        (b"", "yaml", NO_LIST),
        (b"- a\n- [", "yaml", "line 3: the file is malformed YAML: did not find expected node content"),
        (b"- a: b: c", "yaml", "line 1: the file is malformed YAML: mapping values are not allowed in this context"),
        (b"- \x01", "yaml", "the file is malformed YAML: control characters are not allowed"),
        (b"\n" + b"[" * 9, "yaml", "line 2: the file is nested deeper than a list of rules can be"),
        (b"- " * 1_000_000, "yaml", "line 1: the file is nested deeper than a list of rules can be"),
        (b"- 1" + b":59" * 1_000_000, "yaml",
         "row 1: a rule is an object with lookup_key and target_host, not text"),
        (b"[]\n---\n[]", "yaml", "line 3: a second document begins: put all rules into one list"),
        (b"- a: 1\n  a: 2", "yaml", "line 2: the field 'a' stands there twice"),
        (b"- [a]: 1", "yaml", "line 1: the name of a field must be text"),
        (b"- &a [x, x]\n- [*a, *a]", "yaml",
         "line 1: YAML aliases are not taken: a text that begins with * or & must stand in quotes"),
        (b"- x\n- *a", "yaml",
         "line 2: YAML aliases are not taken: a text that begins with * or & must stand in quotes"),
        (b"-\n  lookup_key: *.a.com", "yaml", ("line 2: the file is malformed YAML: did not find expected alphabetic or"
         " numeric character: a text that begins with * or & must stand in quotes")),
        (b"- !!python/object/apply:os.system [ls]", "yaml",
         "line 1: YAML tags are not taken: a text that begins with ! must stand in quotes"),
        (b"- {<<: {lookup_key: a.com}, target_host: b.com}", "yaml",
         f"row 1: the field '<<' is unknown: {KNOWN}; lookup_key is missing"),
    ],
)  # fmt: skip
def test_a_broken_or_hostile_file_is_told(data: bytes, form: Format, message: str) -> None:
    """Truncated, binary, nested without end, or a bomb."""
    assert message == refusal(data, form)


def test_a_file_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is far above any list of rules."""
    monkeypatch.setattr(files, "MAX_BYTES", 1024 * 1024)
    assert refusal(b" " * (1024 * 1024 + 1), "csv") == "the file is larger than 1 MiB"


def test_a_key_that_stands_there_twice_is_told_with_both_rows() -> None:
    """Also in another spelling, and also where the first of them has another fault."""
    text = "lookup_key,target_host,tls\nb.com,c.com,\na.com,b.com,x\n\nA.com.,c.com,\nB.com,d.com,\n"
    assert refusal(text, "csv") == (
        "row 3: tls must be verify, encrypt or none, not 'x'\n"
        "row 5: a.com stands in row 3 already\n"
        "row 6: b.com stands in row 2 already"
    )


def test_only_the_first_faults_are_shown_and_the_others_counted() -> None:
    """A terminal holds no more."""
    lines = refusal("lookup_key,target_host\n" + "a..b,c.com\n" * 55, "csv").split("\n")
    assert 21 == len(lines)
    assert "row 21: the key 'a..b' is malformed: 'a..b' is not a domain name" == lines[19]
    assert "and 35 more" == lines[20]


def test_a_fault_is_one_line_of_bounded_length() -> None:
    """What the file says cannot write over the terminal or fill it."""
    text = refusal(msgspec.json.encode([{"lookup_key": "b.com", "target_host": "\u2028\nb.com"}]), "json")
    assert text == r"row 1: the rule b.com -> \u2028\nb.com points at itself: mail would come back to where it is"
    assert len(refusal(f"lookup_key,target_host\na.com,{'-' * 100_000}\n", "csv")) < 700


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database as madmail makes it, in a place whose name means something in a URI."""
    path = tmp_path / "a ?mode=rwc#%41.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE dns_overrides (lookup_key TEXT PRIMARY KEY, target_host TEXT NOT NULL, comment TEXT,"
            " created_at DATETIME, updated_at DATETIME)"
        )
    return path


def _insert(path: Path, *rows: tuple[object, object, object]) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("INSERT INTO dns_overrides VALUES (?, ?, ?, '2026-01-01 00:00:00', NULL)", rows)


def test_a_database_of_madmail_is_read(database: Path) -> None:
    """By key, with the spellings that madmail let through."""
    assert [] == read_sqlite(database, now=NOW)
    _insert(database, ("b.com", "192.0.2.1", None), ("A.com", "C.com", "why"))
    assert [make_rule("a.com", "c.com", comment="why"), make_rule("b.com", "192.0.2.1")] == read_sqlite(
        database, now=NOW
    )


def test_a_database_in_use_is_read(database: Path) -> None:
    """Madmail keeps it in WAL mode, and open."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO dns_overrides VALUES ('a.com', 'b.com', '', '', '')")
        connection.commit()
        assert [make_rule("a.com", "b.com")] == read_sqlite(database, now=NOW)


def test_a_database_with_bad_rules_is_told(database: Path) -> None:
    """SQLite keeps anything in any column."""
    _insert(database, ("a.com", b"b.com", None), ("b.com", "c.com", b"\x00"), ("c.com", "d.com", "two\nlines"))
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO dns_overrides VALUES ('d.com', CAST(X'ff' AS TEXT), '', '', '')")
        connection.execute("INSERT INTO dns_overrides VALUES ('E.com', 'f.com', '', '', '')")
        connection.execute("INSERT INTO dns_overrides VALUES ('e.com', 'f.com', '', '', '')")
    with pytest.raises(FileError) as caught:
        read_sqlite(database, now=NOW)
    assert str(caught.value) == (
        "row 2: target_host must be text, not bytes\n"
        "row 3: comment must be text, not bytes\n"
        "row 4: the comment must be one line of at most 1000 characters\n"
        "row 5: target_host is not UTF-8 text\n"
        "row 6: e.com stands in row 1 already"
    )


def test_a_missing_database_is_not_made(tmp_path: Path) -> None:
    """SQLite makes a file of any mistyped name."""
    for path in (tmp_path / "no.db", tmp_path):
        with pytest.raises(FileError) as caught:
            read_sqlite(path, now=NOW)
        assert f"there is no file {str(path)!r}" == str(caught.value)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no table dns_overrides: it is not a database of madmail"),
        (b"no database " * 100, "cannot be read as a database of madmail: file is not a database"),
        (b"SQLite format 3\0" + b"\xff" * 4_096, "cannot be read as a database of madmail: file is not a database"),
    ],
)
def test_a_file_that_is_no_database_of_madmail_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    """In plain words."""
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_sqlite(path, now=NOW)
    assert f"{str(path)!r} {message}" == str(caught.value)


def test_a_database_without_the_columns_is_told(tmp_path: Path) -> None:
    """As a later madmail may have them."""
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE dns_overrides (lookup_key TEXT)")
    with pytest.raises(FileError, match="no such column: target_host"):
        read_sqlite(path, now=NOW)


@given(st.data(), st.sampled_from(TEXTS))
def test_any_bytes_are_rules_or_a_file_error(data: st.DataObject, form: Text) -> None:
    """Never another exception."""
    noise = data.draw(st.binary(max_size=200) | hostile_text.map(lambda text: text.encode(errors="surrogatepass")))
    whole = {"csv": CSV, "yaml": YAML, "json": JSON}[form].encode()
    cut = data.draw(st.integers(0, len(whole)))
    for content in (noise, whole[:cut], whole[:cut] + noise + whole[cut:]):
        try:
            read(content, form, now=NOW)
        except FileError as error:
            assert 1 <= len(str(error).splitlines()) <= 21  # noqa: PT017 - one of two good ends


values = st.one_of(
    hostile_text,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["0001-01-01T00:00+23:59", "9999-12-31T23:59-23:59", "1" * 5_000, "10%", "5d", "smtp", "none"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(files.REQUIRED + files.OPTIONAL) | st.text(max_size=3), values), max_size=4
    )
)
def test_any_values_are_rules_or_a_file_error(items: list[dict[str, object]]) -> None:
    """Whatever JSON can put into a field."""
    content = msgspec.json.encode(msgspec.to_builtins(_encodable(items)))
    for form in ("json", "yaml"):
        try:
            read(content, form, now=NOW)
        except FileError as error:
            assert str(error)  # noqa: PT017 - one of two good ends


def _encodable(value: object) -> object:
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case list():
            return [_encodable(each) for each in value]
        case dict():
            return {_encodable(key): _encodable(each) for key, each in value.items()}
        case int() if not isinstance(value, bool):
            return max(-(2**63), min(value, 2**63))
        case _:
            return value


@st.composite
def dated_rules(draw: st.DrawFn) -> list[tuple[Rule, datetime, datetime]]:
    """Rules under different keys, with the times of their making and changing."""
    times = st.datetimes(datetime(2026, 2, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - added
    found: dict[str, Rule] = {}
    for _ in range(draw(st.integers(0, 4))):
        try:
            rule = make_rule(
                draw(domains | domains.map("*.{}".format) | st.just("*") | st.ip_addresses().map(str)),
                ",".join(draw(st.lists(target_texts, min_size=1, max_size=3))),
                comment=draw(hostile_text),
                transport=draw(st.sampled_from(["auto", "https", "smtp"])),
                tls=draw(st.sampled_from([None, "verify", "encrypt", "none"])),
                expires_at=draw(st.none() | times),
                enabled=draw(st.booleans()),
                share=draw(st.none() | st.integers(1, 100)),
            )
        except RuleError:
            continue
        found[rule.lookup_key] = rule
    return [(rule, draw(times), draw(times)) for rule in found.values()]


@given(dated_rules(), st.sampled_from(TEXTS))
def test_what_is_written_is_read_again(rules: list[tuple[Rule, datetime, datetime]], form: Text) -> None:
    """An export is the import of another fleet."""
    assert [rule for rule, _, _ in rules] == read(write(rules, form), form, now=NOW)


@pytest.mark.parametrize("form", TEXTS)
def test_a_comment_of_any_character_is_read_again(form: Text) -> None:
    """Also those that YAML takes for a mark, a number or nothing, and those it cannot hold as they are."""
    odd = ["\ufeff\ufffe\uffff\U0001f4e7\xa0", " x ", '"', "'", "#", "null", "~", "1", "*a", "&a", "- a", "a: b", "=1"]
    rules = [(make_rule(f"{number}.example", "b.com", comment=each), NOW, NOW) for number, each in enumerate(odd)]
    assert [rule for rule, _, _ in rules] == read(write(rules, form), form, now=NOW)


def test_an_export_is_legible() -> None:
    """It is edited by hand before it is read again."""
    rules = [(EXPECTED[1], NOW, NOW + timedelta(hours=1))]
    assert write(rules, "csv").decode() == (
        "lookup_key,target_host,comment,transport,tls,expires_at,enabled,share,created_at,updated_at\n"
        '*.a.com,d.com,"ticket 7, ""urgent"" now",smtp,none,2026-01-31T18:00:00+00:00,false,10,'
        "2026-01-31T12:00:00+00:00,2026-01-31T13:00:00+00:00\n"
    )
    assert write(rules, "yaml").decode() == (
        '- lookup_key: "*.a.com"\n'
        '  target_host: "d.com"\n'
        '  comment: "ticket 7, \\"urgent\\" now"\n'
        '  transport: "smtp"\n'
        '  tls: "none"\n'
        '  expires_at: "2026-01-31T18:00:00+00:00"\n'
        "  enabled: false\n"
        "  share: 10\n"
        '  created_at: "2026-01-31T12:00:00+00:00"\n'
        '  updated_at: "2026-01-31T13:00:00+00:00"\n'
    )
    assert write(rules, "json").startswith(b'[\n  {\n    "lookup_key": "*.a.com",\n    "target_host": "d.com",\n')
    assert [write([], form) for form in TEXTS] == [
        b"lookup_key,target_host,comment,transport,tls,expires_at,enabled,share,created_at,updated_at\n",
        b"[]\n",
        b"[]\n",
    ]
