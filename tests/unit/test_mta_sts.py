"""MTA-STS records and policies as values (RFC 8461)."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.mta_sts import MAX_AGE, MAX_POLICY, Demand, Held, Policy, demand, listed, parse_policy, record_id

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
# RFC 8461 3.2's own example.
EXAMPLE = b"""\
version: STSv1
mode: enforce
mx: mail.example.com
mx: *.example.net
mx: backupmx.example.com
max_age: 604800
"""


class TestRecord:
    """RFC 8461 3.1."""

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            (b"v=STSv1; id=20160831085700Z;", "20160831085700Z"),
            (b"v=STSv1;id=1", "1"),
            (b"v=STSv1 ;\tid=1 ; ", "1"),
            (b"v=STSv1; more=x:y; id=1; A_b-c.9=!~", "1"),
            (b"v=STSv1; id=" + b"a" * 32, "a" * 32),
            (b"v=STSv1; id=1; id=2", "1"),
            (b"v=STSv1; id=" + b"a" * 33, None),
            (b"v=STSv1; id=", None),
            (b"v=STSv1; id=a-b", None),
            (b"v=STSv1; id=1 2", None),
            (b"v=STSv1; ID=1", None),
            (b"v=STSv1;", None),
            (b"v=STSv1", None),
            (b"v=STSv1; id=1;; more=x", None),
            (b"v=STSv1; id=1;;", None),
            (b"v=STSv1; id=1; more", None),
            (b"v=STSv1; id=1; more=\xff", None),
            (b"v=STSv1; id=1\n", None),
            (b"v=STSv11; id=1", None),
            (b"v=stsv1; id=1", None),
            (b" v=STSv1; id=1", None),
            (b"id=1; v=STSv1;", None),
            (b"", None),
        ],
    )
    def test_one_record(self, record: bytes, expected: str | None) -> None:
        """A record that is malformed announces nothing."""
        assert expected == record_id([record])

    def test_others_are_looked_past(self) -> None:
        """They belong to something else."""
        assert record_id([b"v=spf1 -all", b"v=STSv1; id=1", b"v=STSv2; id=2"]) == "1"

    def test_not_exactly_one(self) -> None:
        """Nobody knows which of two is meant, also when one is malformed or they are equal."""
        assert record_id([]) is None
        assert record_id([b"v=STSv1; id=1", b"v=STSv1; id=1"]) is None
        assert record_id([b"v=STSv1; id=1", b"v=STSv1;"]) is None

    @given(st.lists(st.binary() | st.binary().map(lambda tail: b"v=STSv1;" + tail)))
    def test_any_bytes(self, records: list[bytes]) -> None:
        """Strangers write them."""
        found = record_id(records)
        assert found is None or (found.isascii() and found.isalnum() and 1 <= len(found) <= 32)


class TestPolicy:
    """RFC 8461 3.2."""

    @pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
    def test_the_example(self, ends: bytes) -> None:
        """With either line end, and with or without one at the end."""
        mx = ("mail.example.com", "*.example.net", "backupmx.example.com")
        expected = Policy(mode="enforce", mx=mx, max_age=604_800)
        assert expected == parse_policy(EXAMPLE.replace(b"\n", ends))
        assert expected == parse_policy(EXAMPLE.replace(b"\n", ends).removesuffix(ends))

    @pytest.mark.parametrize(
        "body",
        [
            b"max_age:1\nmx:a.example\nmode:testing\nversion:STSv1",
            b"version:\tSTSv1 \r\nmode:   testing\nmx: A.example.\nmax_age: 0000000001\n\n",
            b"version: STSv1\nother: \xc3\xa4 b\nmode: testing\nmx: a.example\nmax_age: 1\nno_mx: b",
            b"version: STSv1\nmode: testing\nmx: a.example\nmax_age: 1\nversion: STSv2\nmode: none\nmax_age: x",
        ],
        ids=["any order", "white space", "unknown keys", "the first counts"],
    )
    def test_written_otherwise(self, body: bytes) -> None:
        """What means the same is the same."""
        assert Policy(mode="testing", mx=("a.example",), max_age=1) == parse_policy(body)

    def test_a_policy_of_mode_none_needs_no_mx(self) -> None:
        """RFC 8461 8.3."""
        assert Policy(mode="none", mx=(), max_age=5) == parse_policy(b"version: STSv1\nmode: none\nmax_age: 5\n")

    @pytest.mark.parametrize(
        ("age", "expected"), [(0, 0), (MAX_AGE, MAX_AGE), (MAX_AGE + 1, MAX_AGE), (9_999_999_999, MAX_AGE)]
    )
    def test_max_age_is_capped(self, age: int, expected: int) -> None:
        """A year is the most for which a mistake can last."""
        assert expected == parse_policy(_with(max_age=str(age))).max_age

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"", "version is '', not 'STSv1'"),
            (b"<html>", "'<html>' is not a key and a value"),
            (b"mode: enforce\nmx: a.example\nmax_age: 1", "version is ''"),
            (b"version: STSv1\nmx: a.example\nmax_age: 1", "mode is '', not one of enforce, testing, none"),
            (b"version: STSv1\nmode: enforce\nmx: a.example", "max_age is '', not a number"),
            (b"version: STSv1\nmode: enforce\nmax_age: 1", "there is no mx"),
            (b"version: STSv1\nmode: testing\nmax_age: 1", "there is no mx"),
            (b"version: STSv1\rmode: none\rmax_age: 1", "not a key and a value"),
            (b"version: STSv1\nmode: none\nmax_age: 1\nx:", "'x:' is not a key and a value"),
            (b"version: STSv1\nmode: none\nmax_age: 1\nx: \x00", "not a key and a value"),
            (b" version: STSv1\nmode: none\nmax_age: 1", "not a key and a value"),
            (b"\xef\xbb\xbfversion: STSv1\nmode: none\nmax_age: 1", "not a key and a value"),
            (b"version: STSv1\nmode: none\nmax_age: 1\nx: \xff", "not UTF-8"),
            (b"x: y\n" * (MAX_POLICY // 5 + 1), "longer than 65536 bytes"),
        ],
    )
    def test_malformed(self, body: bytes, why: str) -> None:
        """It says what is wrong, for the operator who looks into the log."""
        with pytest.raises(ValueError, match=r".") as raised:
            parse_policy(body)
        assert why in str(raised.value)

    @pytest.mark.parametrize(
        "field",
        [
            {"version": "STSv2"},
            {"version": "stsv1"},
            {"mode": "Enforce"},
            {"max_age": "-1"},
            {"max_age": "1.5"},
            {"max_age": "1 day"},
            {"max_age": "\u0661"},
            {"max_age": "12345678901"},
            *({"mx": each} for each in ("*", "*.", ".", "a.*.example", "*.*.example", "*a.example", "**.example")),
            *({"mx": each} for each in ("192.0.2.1", "[192.0.2.1]", "*.192.0.2.1", "2001:db8::1", "a b.example", "-")),
        ],
        ids=str,
    )
    def test_a_malformed_value(self, field: dict[str, str]) -> None:
        """The whole policy is none: half of a policy is not what the domain wanted."""
        with pytest.raises(ValueError, match=next(iter(field))):
            parse_policy(_with(**field))

    @given(st.binary() | st.binary().map(lambda tail: EXAMPLE + tail))
    def test_any_bytes(self, body: bytes) -> None:
        """A policy or a ValueError; and what is kept as text is read again as the same."""
        try:
            policy = parse_policy(body)
        except ValueError:
            return
        assert policy == Held.of("1", body.decode(), NOON).policy


class TestHeld:
    """How long a policy is in force."""

    @pytest.mark.parametrize(("max_age", "seconds"), [(0, 60), (59, 60), (86_400, 86_400)])
    def test_in_force(self, max_age: int, seconds: int) -> None:
        """Until `max_age` after it was fetched, and at least for the mail that it was fetched for."""
        held = Held.of("1", _with(max_age=str(max_age)).decode(), NOON)
        assert held.in_force(NOON + timedelta(seconds=seconds - 1))
        assert not held.in_force(NOON + timedelta(seconds=seconds))
        assert NOON + timedelta(seconds=seconds / 2) == held.refresh_at


class TestDemand:
    """RFC 8461 4.1 and 5."""

    POLICY = Policy(mode="enforce", mx=("mx.a.example", "*.b.example", "xn--bcher-kva.example"), max_age=1)

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("mx.a.example", True),
            ("MX.A.Example.", True),
            ("one.b.example", True),
            ("xn--bcher-kva.example", True),
            ("b.example", False),
            ("two.one.b.example", False),
            (".b.example", False),
            ("a.example", False),
            ("other.a.example", False),
            ("mx.a.example.evil.example", False),
            ("evilmx.a.example", False),
            ("192.0.2.1", False),
            ("", False),
        ],
    )
    def test_listed(self, host: str, expected: bool) -> None:
        """A wildcard is exactly one label; case does not matter."""
        assert expected is listed(self.POLICY, host)
        assert (Demand.VERIFY if expected else Demand.SKIP) is demand(self.POLICY, host)

    def test_patterns_are_normalised(self) -> None:
        """So that equal names are equal strings."""
        policy = parse_policy(_with(mx="*.BÜCHER.example"))
        assert ("*.xn--bcher-kva.example",) == policy.mx

    @pytest.mark.parametrize("mode", ["testing", "none"])
    def test_only_enforce_demands(self, mode: str) -> None:
        """And no policy demands nothing."""
        policy = parse_policy(_with(mode=mode))
        assert Demand.NOTHING is demand(policy, "mx.evil.example") is demand(policy, "a.example")
        assert Demand.NOTHING is demand(None, "a.example")


def _with(**fields: str) -> bytes:
    given = {"version": "STSv1", "mode": "enforce", "mx": "a.example", "max_age": "1", **fields}
    return "".join(f"{key}: {value}\n" for key, value in given.items()).encode()
