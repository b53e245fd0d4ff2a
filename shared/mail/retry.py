"""When to try again. Clock and dice are arguments."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

_UNITS: Mapping[str, str] = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=3_650)  # much longer, and adding it to a date leaves the calendar
JITTER = 0.1  # of the wait, either way, so that mail deferred together does not come back together


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """The patience of the fleet.

    Attributes:
        waits: The wait after the first, second, ... attempt; the last one repeats.
        max_age: How old a message may grow before it is given up (RFC 5321 4.5.4.1: 4 to 5 days).
        warn_after: How old it is when the sender is told that it is late.
        quick: The waits when HTTPS says "later", before SMTP is tried instead.
    """

    waits: tuple[timedelta, ...]
    max_age: timedelta = timedelta(days=5)
    warn_after: timedelta = timedelta(hours=4)
    quick: tuple[timedelta, ...] = (timedelta(seconds=2), timedelta(seconds=10))

    def next_attempt(self, *, attempts: int, accepted_at: datetime, now: datetime, spread: float) -> datetime | None:
        """Return when to try next, or None when the message would outlive `max_age`.

        Args:
            attempts: How often it has been tried, at least 1.
            accepted_at: When the fleet accepted it.
            now: The time.
            spread: A throw of the dice from -1 to 1.
        """
        wait = self.waits[min(attempts, len(self.waits)) - 1] * (1 + JITTER * spread)
        return now + wait if now + wait <= accepted_at + self.max_age else None


def parse_duration(text: str) -> timedelta:
    """Read `90s`, `15m`, `4h` or `5d`.

    Raises:
        ValueError: The text is none of these, or not more than zero.
    """
    number, unit = text.strip()[:-1], text.strip()[-1:]
    if unit not in _UNITS or not number.isascii() or not number.isdecimal() or int(number) == 0:
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m, 4h or 5d")
    try:
        duration = timedelta(**{_UNITS[unit]: int(number)})
    except OverflowError as error:
        raise ValueError(f"{text!r} is too long") from error
    if duration > _LONGEST:
        raise ValueError(f"{text!r} is too long: at most {_LONGEST.days}d")
    return duration


def parse_waits(text: str) -> tuple[timedelta, ...]:
    """Read `1m,5m,15m`.

    Raises:
        ValueError: One of them is no duration.
    """
    return tuple(parse_duration(part) for part in text.split(","))
