"""MTA-STS (RFC 8461): what a domain says of its mail hosts, and what that demands of a connection to one of them.

A record or policy that is malformed is no policy; whoever fetched it decides what holds instead.
"""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, Self, get_args

import msgspec

from shared.mail.domain import DomainError, normalise

MAX_POLICY = 65_536  # bytes, RFC 8461 3.3
MAX_AGE = 31_557_600  # seconds, about a year (RFC 8461 3.2)
MEDIA_TYPE = "text/plain"
# Seconds in force at the least: a policy that ends as it is fetched still holds for the mail that it was fetched for.
_MIN_AGE = 60

Mode = Literal["enforce", "testing", "none"]

# RFC 8461 3.1; white space may stand around the semicolons.
_VERSION = re.compile(rb"v=STSv1[ \t]*;")
_FIELD = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})=([\x21-\x3a\x3c\x3e-\x7e]+)")
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
# RFC 8461 3.2
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31}):[ \t]*([^\x00-\x1f\x7f]+)")
_SECONDS = re.compile(r"[0-9]{1,10}")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy file.

    Attributes:
        mode: `enforce` demands verified TLS, `testing` only wants to hear of it, `none` takes an earlier policy back.
        mx: Patterns of host names, normalised: `mx.a.example` or `*.a.example`.
        max_age: The seconds for which it may be kept.
    """

    mode: Mode
    mx: tuple[str, ...]
    max_age: int


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that is kept.

    Attributes:
        id: Of the TXT record that announced it.
        text: The policy as it was fetched.
        fetched_at: When its host gave it.
    """

    id: str
    text: str
    policy: Policy
    fetched_at: datetime

    @classmethod
    def of(cls, id: str, text: str, fetched_at: datetime) -> Self:  # noqa: A002 - the record's word
        """Keep the text of a policy.

        Raises:
            ValueError: It is malformed.
        """
        return cls(id=id, text=text, policy=parse_policy(text.encode()), fetched_at=fetched_at)

    @property
    def expires_at(self) -> datetime:
        """When it is no longer in force."""
        return self.fetched_at + timedelta(seconds=max(self.policy.max_age, _MIN_AGE))

    @property
    def refresh_at(self) -> datetime:
        """When it is to be fetched again, whatever its record says (RFC 8461 3.3)."""
        return self.fetched_at + (self.expires_at - self.fetched_at) / 2

    def in_force(self, now: datetime) -> bool:
        """Say whether it holds: nothing but a newer policy ends it early (RFC 8461 3.3)."""
        return now < self.expires_at


class Demand(StrEnum):
    """What a policy demands of mail to one host."""

    VERIFY = "verify"  # TLS, with a certificate of the host's name (RFC 8461 4.2)
    SKIP = "skip"  # no mail at all: the policy does not list the host (RFC 8461 5)
    NOTHING = "nothing"  # go on as without a policy


def record_id(records: Iterable[bytes]) -> str | None:
    """Return the id that the TXT records of `_mta-sts.` and a domain announce, or None when they announce no policy.

    Other records are looked past; two announcements are none (RFC 8461 3.1).

    Args:
        records: Each with its strings put together.
    """
    announced = [record for record in records if _VERSION.match(record)]
    if len(announced) != 1:
        return None
    _, *fields = announced[0].decode("ascii", "replace").split(";")
    if not fields[-1].strip(" \t"):
        fields.pop()  # one semicolon may stand at the end
    found = [_FIELD.fullmatch(field.strip(" \t")) for field in fields]
    ids = [each[2] for each in found if each is not None and each[1] == "id"]
    return ids[0] if None not in found and ids and _ID.fullmatch(ids[0]) else None


def parse_policy(body: bytes) -> Policy:
    """Read a policy file (RFC 8461 3.2). Of a field that is repeated the first counts, except `mx`; others are ignored.

    Raises:
        ValueError: It is malformed; the message says why.
    """
    if len(body) > MAX_POLICY:
        raise ValueError(f"the policy is longer than {MAX_POLICY} bytes")
    fields = _fields(body)
    version, mode, age = (fields.get(name, [""])[0] for name in ("version", "mode", "max_age"))
    if version != "STSv1":
        raise ValueError(f"version is {version[:80]!r}, not 'STSv1'")
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode[:80]!r}, not one of {', '.join(get_args(Mode))}")
    if not _SECONDS.fullmatch(age):
        raise ValueError(f"max_age is {age[:80]!r}, not a number of seconds")
    mx = tuple(map(_pattern, fields.get("mx", ())))
    if not mx and mode != "none":
        raise ValueError(f"mode is {mode}, and there is no mx")
    return msgspec.convert({"mode": mode, "mx": mx, "max_age": min(int(age), MAX_AGE)}, Policy)


def _fields(body: bytes) -> dict[str, list[str]]:
    try:
        lines = body.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError("the policy is not UTF-8") from error
    fields: dict[str, list[str]] = {}
    for line in filter(None, (each.removesuffix("\r").rstrip(" \t") for each in lines)):
        if (found := _LINE.fullmatch(line)) is None:
            raise ValueError(f"{line[:80]!r} is not a key and a value")
        fields.setdefault(found[1], []).append(found[2])
    return fields


def _pattern(text: str) -> str:
    """Return a pattern with its domain normalised; a wildcard is the whole left-most label (RFC 8461 4.1)."""
    domain = text.removeprefix("*.")
    try:
        normal = normalise(domain)
    except DomainError as error:
        raise ValueError(f"mx {text[:80]!r} is not a host name") from error
    if normal.startswith("["):
        raise ValueError(f"mx {text[:80]!r} is an address, not a host name")
    return text[: len(text) - len(domain)] + normal


def listed(policy: Policy, host: str) -> bool:
    """Say whether a policy lists a mail host; a wildcard stands for exactly one label (RFC 8461 4.1)."""
    host = host.lower().removesuffix(".")
    label, _, parent = host.partition(".")
    return host in policy.mx or (bool(label and parent) and f"*.{parent}" in policy.mx)


def demand(policy: Policy | None, host: str) -> Demand:
    """Decide what a domain's policy demands of mail to one of its hosts (RFC 8461 5).

    `testing` demands nothing; that a host is not `listed` is for the log.
    """
    if policy is None or policy.mode != "enforce":
        return Demand.NOTHING
    return Demand.VERIFY if listed(policy, host) else Demand.SKIP
