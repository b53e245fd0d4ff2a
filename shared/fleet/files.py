"""Read and write files of rules, for bulk import and export.

A file is taken whole or not at all: every fault in it is found and told with its row, so that one correction does it.
"""

import csv
import io
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date, datetime
from functools import lru_cache, partial
from pathlib import Path, PurePath
from typing import Final, Literal, TypeAlias, assert_never, cast, get_args
from urllib.parse import quote

import msgspec
import yaml

from shared.mail.route import Tls, Transport
from shared.mail.rule import Rule, RuleError, make_rule, parse_expiry, parse_key, parse_share

Format: TypeAlias = Literal["csv", "yaml", "json", "sqlite"]
Dated: TypeAlias = tuple[Rule, datetime, datetime]  # a rule, when it was made, and when it was changed last

REQUIRED: Final = ("lookup_key", "target_host")
OPTIONAL: Final = ("comment", "transport", "tls", "expires_at", "enabled", "share")
IGNORED: Final = ("created_at", "updated_at", "version")  # what an export tells and the next import decides anew
MAX_BYTES: Final = 256 * 1024 * 1024

_COLUMNS: Final = REQUIRED + OPTIONAL
_KNOWN: Final = frozenset(_COLUMNS + IGNORED)
_LISTS: Final = ("rules", "overrides")  # the names that a list of rules may have
_MAGIC: Final = b"SQLite format 3\0"
_EXTENSIONS: Final[Mapping[str, Format]] = {
    ".csv": "csv", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".db": "sqlite", ".sqlite": "sqlite",
}  # fmt: skip
_IS_TABLE: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'dns_overrides'"
_ENABLED: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_KINDS: Final = {
    bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object",
    bytes: "bytes", type(None): "nothing",
}  # fmt: skip
_SHOWN: Final = 20  # faults
_ENDLESS: Final = 10**20  # a number not worth showing
_LONGEST: Final = 600  # characters of one fault
_SPAN: Final = re.compile(r"\s*[0-9]+(?:\.[0-9]+)?\s*[A-Za-z]*\s*")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SCALARS: Final = frozenset(f"tag:yaml.org,2002:{each}" for each in ("null", "bool", "int", "float", "timestamp"))
_NOT_YAML: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # but JSON; see YAML 1.1, 5.1
_LONGEST_WORD: Final = 64  # characters
_DEEPEST: Final = 8  # levels of YAML; a list of rules under "data" and "rules" has four
_QUOTE: Final = "a text that begins with * or & must stand in quotes"


class FileError(ValueError):
    """The file cannot be taken; the message has one line for each row at fault."""


def format_of(name: str, head: bytes) -> Format:
    """Say what a file holds, by its first bytes and its name.

    Raises:
        FileError: Neither tells.
    """
    if head.startswith(_MAGIC):
        return "sqlite"
    if (form := _EXTENSIONS.get(PurePath(name).suffix.lower())) is None:
        raise FileError(f"{name!r} does not tell what it holds: say so with --format csv, yaml, json or sqlite")
    return form


def read(data: bytes, form: Format, *, now: datetime) -> list[Rule]:
    """Return the rules of a file in the order they stand there.

    Raises:
        FileError: The file or a rule in it is malformed, or a key stands there twice.
    """
    if form == "sqlite":
        raise FileError("a database is read from its place on the disk, not from a stream: name its path")
    text = _text(data)
    rows = _Rows(now)
    match form:
        case "csv":
            _read_csv(text, rows)
        case "json":
            rows.add_all(_list_of(_json(text)))
        case "yaml":
            rows.add_all(_list_of(_yaml(text)))
        case _:
            assert_never(form)
    return rows.finish()


def read_sqlite(path: Path, *, now: datetime) -> list[Rule]:
    """Return the rules in a database of madmail, by their keys; the rows are counted in this order.

    The database is opened read-only, so a running madmail is not disturbed and a mistyped path makes no file.

    Raises:
        FileError: There is no such database or table, or a rule in it is malformed.
    """
    rows = _Rows(now)
    try:
        if not path.is_file():
            raise FileError(f"there is no file {str(path)!r}")
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(path.absolute()))}?mode=ro", uri=True)) as database:
            # Broken text is for the row's own check to refuse, which can name the row.
            database.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
            if not database.execute(_IS_TABLE).fetchone():
                raise FileError(f"{str(path)!r} has no table dns_overrides: it is not a database of madmail")
            names = ("lookup_key", "target_host", "comment")
            found = database.execute("SELECT lookup_key, target_host, comment FROM dns_overrides ORDER BY lookup_key")
            for number, values in enumerate(found, 1):
                rows.add(number, zip(names, values, strict=True))
    except (sqlite3.Error, OSError) as error:
        raise FileError(_line(f"{str(path)!r} cannot be read as a database of madmail: {error}")) from error
    return rows.finish()


def write(rules: Iterable[Dated], form: Literal["csv", "yaml", "json"]) -> bytes:
    """Return a file with these rules, which `read` takes again."""
    shown = (_shown(*each) for each in rules)
    match form:
        case "csv":
            out = io.StringIO()
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow((*_COLUMNS, "created_at", "updated_at"))
            writer.writerows([_cell(value) for value in each.values()] for each in shown)
            return out.getvalue().encode()
        case "json":
            return msgspec.json.format(msgspec.json.encode(list(shown)), indent=2) + b"\n"
        case "yaml":
            return ("".join(map(_yaml_of, shown)) or "[]\n").encode()
        case _:
            assert_never(form)


class _Rows:
    """The rules read so far, and what is wrong with the others."""

    def __init__(self, now: datetime) -> None:
        self._readers: Mapping[str, Callable[[str, object], object]] = {
            "lookup_key": _written,
            "target_host": _written,
            "comment": _written,
            "transport": partial(_choice, get_args(Transport)),
            "tls": partial(_choice, get_args(Tls)),
            "expires_at": partial(_expiry, now),
            "enabled": _enabled,
            "share": _share,
        }
        self._rules: list[Rule] = []
        self._rows: dict[str, int] = {}  # of each key
        self._faults: list[str] = []
        self._unshown = 0

    def fault(self, text: str) -> None:
        """Note what is wrong, to be told by `finish`."""
        if len(self._faults) < _SHOWN:
            self._faults.append(_line(text))
        else:
            self._unshown += 1

    def add(self, row: int, fields: Iterable[tuple[str, object]]) -> None:
        """Take the rule of one row, or note what is wrong with it. None and "" mean the default."""
        values: dict[str, object] = {}
        faults: list[str] = []
        for name, value in fields:
            if name in self._readers:
                if value is None or (value == "" and name not in REQUIRED):
                    continue
                try:
                    values[name] = self._readers[name](name, value)
                except RuleError as error:
                    faults.append(str(error))
                    if name in REQUIRED:
                        values[name] = None
            elif name not in IGNORED:
                faults.append(_unknown("field", name))
        if missing := [name for name in REQUIRED if name not in values]:
            faults.append(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
        rule = self._made(values, faults)
        self._note_key(row, rule.lookup_key if rule else _key(values), faults)
        if faults:
            self.fault(f"row {row}: {'; '.join(faults)}")
        elif rule:
            self._rules.append(rule)

    def add_all(self, items: Sequence[object]) -> None:
        """Take a list of objects, counted from 1."""
        for row, item in enumerate(items, 1):
            if isinstance(item, dict):
                self.add(row, cast("dict[str, object]", item).items())
            else:
                self.fault(f"row {row}: a rule is an object with lookup_key and target_host, not {_kind(item)}")

    def finish(self) -> list[Rule]:
        """Return the rules.

        Raises:
            FileError: Something was wrong.
        """
        if self._faults:
            more = [f"and {self._unshown} more"] if self._unshown else []
            raise FileError("\n".join(self._faults + more))
        return self._rules

    def _made(self, values: Mapping[str, object], faults: list[str]) -> Rule | None:
        key, target = values.get("lookup_key"), values.get("target_host")
        if not isinstance(key, str) or not isinstance(target, str):
            return None
        options = {name: value for name, value in values.items() if name not in REQUIRED}
        try:
            return make_rule(key, target, **options)  # type: ignore[arg-type]  # each by its reader
        except RuleError as error:
            faults.append(str(error))
            return None

    def _note_key(self, row: int, key: str | None, faults: list[str]) -> None:
        if key is not None and (first := self._rows.setdefault(key, row)) != row:
            faults.append(f"{key} stands in row {first} already")


def _read_csv(text: str, rows: _Rows) -> None:
    """Take the rows of a CSV file (RFC 4180), each counted by the line that it begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 0
    try:
        for cells in reader:
            row, line = line + 1, reader.line_num
            if not cells:
                continue
            if header is None:
                header = _header(row, cells)
            elif len(cells) == len(header):
                rows.add(row, zip(header, cells, strict=True))
            else:
                rows.fault(f"row {row}: the header has {len(header)} columns, but the row {len(cells)}")
    except csv.Error as error:
        rows.fault(f"row {line + 1}: the row is no CSV, perhaps for a quote that is not closed: {error}")
    if header is None:
        rows.fault("the file is empty: its first row must name the columns, lookup_key and target_host at least")


def _header(row: int, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    faults = [_unknown("column", name) for name in names if name not in _KNOWN]
    faults += [f"the column {name} stands there twice" for name in sorted(_KNOWN) if names.count(name) > 1]
    if missing := [name for name in REQUIRED if name not in names]:
        what = f"the column {missing[0]} is" if len(missing) == 1 else f"the columns {' and '.join(missing)} are"
        faults.insert(0, f"{what} missing: the first row names the columns, separated by commas")
    if faults:
        raise FileError(_line(f"row {row}: {'; '.join(faults)}"))
    return names


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise FileError(f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB")
    if (at := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise FileError(f"line {line}: a NUL byte is no text: save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError(
            f"line {line}: the byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from error


def _json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        what = str(error).removeprefix("JSON is malformed: ")
        raise FileError(_line(f"the file is malformed JSON: {what}")) from error
    except RecursionError as error:
        raise FileError("the file is nested deeper than a list of rules can be") from error


def _yaml(text: str) -> object:
    """Return what a YAML document holds, without its aliases and tags: they can make a bomb, and rules need none."""
    try:
        events = iter(yaml.parse(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader))
        document: object = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                document = _node(event, events, 1)
                documents += 1
            if documents > 1:
                raise FileError(f"line {_at(event)}: a second document begins: put all rules into one list")
    except yaml.YAMLError as error:
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        mark = getattr(error, "problem_mark", None)
        where = "the file" if mark is None else f"line {mark.line + 1}: the file"
        hint = f": {_QUOTE}" if "alphabetic" in what else ""
        raise FileError(_line(f"{where} is malformed YAML: {what}{hint}")) from error
    return document


def _node(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> object:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise FileError(f"line {_at(event)}: YAML aliases are not taken: {_QUOTE}")
    if getattr(event, "tag", None) is not None:
        raise FileError(f"line {_at(event)}: YAML tags are not taken: a text that begins with ! must stand in quotes")
    if depth > _DEEPEST:
        raise FileError(f"line {_at(event)}: the file is nested deeper than a list of rules can be")
    if isinstance(event, yaml.ScalarEvent):
        # No time or sensible number is longer, and a number of a megabyte takes Python hours.
        is_word = event.implicit[0] and len(event.value) <= _LONGEST_WORD
        return _plain(event.value) if is_word else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        return [_node(each, events, depth + 1) for each in _until_end(events)]
    fields: dict[str, object] = {}
    for key in _until_end(events):
        _node(key, events, depth + 1)
        name = getattr(key, "value", None)
        if not isinstance(name, str):
            raise FileError(f"line {_at(key)}: the name of a field must be text")
        if name in fields:
            raise FileError(_line(f"line {_at(key)}: the field {_seen(name)} stands there twice"))
        fields[name] = _node(next(events), events, depth + 1)
    return fields


def _until_end(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    while not isinstance(event := next(events), yaml.CollectionEndEvent):
        yield event


def _at(event: yaml.Event) -> int:
    return 0 if event.start_mark is None else event.start_mark.line + 1


@lru_cache(maxsize=4_096)
def _plain(text: str) -> object:
    """Return what a YAML scalar without quotes means: text, a number, a time, a boolean or nothing."""
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag not in _SCALARS:
        return text
    try:
        value: object = loader.yaml_constructors[tag](loader, yaml.ScalarNode(tag, text))
    except (ValueError, OverflowError):
        return text  # such as the 45th of January, which its reader refuses
    return value


def _list_of(document: object) -> Sequence[object]:
    """Return the list of rules: the document, or what it has under one of the names for it."""
    if isinstance(document, dict) and isinstance(document.get("data"), dict):
        document = document["data"]  # as `list --json` prints it
    if isinstance(document, dict):
        found = [document[name] for name in _LISTS if name in document]
        document = found[0] if len(found) == 1 else None
    if not isinstance(document, list):
        raise FileError('the file holds no rules: it must be a list of objects, or an object with that list as "rules"')
    return document


def _written(name: str, value: object) -> str:
    if not isinstance(value, str):
        advice = "" if isinstance(value, dict | list | bytes) else ": put it in quotes"
        raise RuleError(f"{name} must be text, not {_kind(value)}{advice}")
    if not value.isascii() and _SURROGATE.search(value):
        raise RuleError(f"{name} is not UTF-8 text")
    return value


def _choice(choices: Sequence[str], name: str, value: object) -> str | None:
    if not isinstance(value, str) or (choice := value.strip()) not in choices:
        raise RuleError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {_seen(value)}")
    return choice


def _enabled(name: str, value: object) -> bool:
    if isinstance(value, str):
        enabled = _ENABLED.get(value.strip().lower())
    else:
        enabled = bool(value) if isinstance(value, int) and value in (0, 1) else None
    if enabled is None:
        raise RuleError(f"{name} must be true or false, not {_seen(value)}")
    return enabled


def _share(name: str, value: object) -> int | None:
    try:
        if isinstance(value, str) or type(value) is int:
            return parse_share(str(value))
    except ValueError:  # also of a number with more digits than Python prints
        pass
    raise RuleError(f"{name} must be a whole number from 1 to 100, not {_seen(value)}")


def _expiry(now: datetime, name: str, value: object) -> datetime:
    text = value.isoformat() if isinstance(value, date) else value
    if not isinstance(text, str) or _SPAN.fullmatch(text):
        # A span would mean another time whenever the file is read.
        raise RuleError(f"{name} must be a time with its zone, such as 2026-01-31T18:00Z, not {_seen(value)}")
    try:
        return parse_expiry(text, now)
    except RuleError as error:
        raise RuleError(f"{name}: {error}") from error


def _key(values: Mapping[str, object]) -> str | None:
    """Return the key of a row that is at fault elsewhere, so that its double is found all the same."""
    try:
        return parse_key(key) if isinstance(key := values.get("lookup_key"), str) else None
    except RuleError:
        return None


def _shown(rule: Rule, created_at: datetime, updated_at: datetime) -> dict[str, str | int | None]:
    return {
        "lookup_key": rule.lookup_key,
        "target_host": rule.target_host,
        "comment": rule.comment,
        "transport": rule.transport,
        "tls": rule.tls,
        "expires_at": None if rule.expires_at is None else rule.expires_at.isoformat(),
        "enabled": rule.enabled,
        "share": rule.share,
        "created_at": created_at.isoformat(),
        "updated_at": updated_at.isoformat(),
    }


def _yaml_of(fields: Mapping[str, str | int | None]) -> str:
    """Return one item of a YAML list. Its scalars are those of JSON: PyYAML takes twelve seconds for 100,000 rules."""
    lines = (f"{name}: {msgspec.json.encode(value).decode()}\n" for name, value in fields.items())
    return _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", "- " + "  ".join(lines))


def _cell(value: str | int | None) -> str | int | None:
    return str(value).lower() if isinstance(value, bool) else value


def _unknown(what: str, name: object) -> str:
    return f"the {what} {_seen(name)} is unknown: known are {', '.join(_COLUMNS + IGNORED)}"


def _kind(value: object) -> str:
    return "a date" if isinstance(value, date) else _KINDS.get(type(value), type(value).__name__)


def _seen(value: object) -> str:
    """Return the value as it is shown in a sentence; of a nested or endless one only its kind."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else f"{value[:80]!r}..."  # noqa: PLR2004
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | date) or (isinstance(value, int) and abs(value) < _ENDLESS):
        return str(value)
    return _kind(value)


def _line(text: str) -> str:
    """Return one line that a terminal can show, whatever the file put into it."""
    line = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], line)
