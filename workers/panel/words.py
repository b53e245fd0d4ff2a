"""Values as people read them, and text of strangers as nobody can be fooled by it. Pure."""

import re
from datetime import UTC, datetime, timedelta

from markupsafe import Markup, escape

# What a browser would obey rather than show: control characters; marks that turn the direction of the text, so that
# what is read is not what is there (CVE-2021-42574); characters of no width; halves of characters.
_ODD = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
    "|[\ud800-\udfff]"
)
_BREAKS = re.compile(r"(?<=[./,:@])(?=[^./,:@])")
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))
_SIZE = 1024


def visible(value: object) -> object:
    """Return text with every character written out that would not be seen; anything else as it is.

    The templates pass all that they print through this, so that none has to remember it. It adds no markup, since it
    is used within attributes too; what a form sends back goes through `exact` instead.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _ODD.sub(_written, value)


def exact(value: object) -> Markup:
    """Return a value that a form sends back: escaped, and else as it is; what is written out would be saved so."""
    return escape(value)


def lines(text: str) -> Markup:
    """Return text of several lines for a `pre`: its line ends and tabs stay, and nothing else that is not seen."""
    kept = text.replace("\r\n", "\n").split("\n")
    shown = ("\t".join(str(visible(part)) for part in line.split("\t")) for line in kept)
    return Markup("\n").join(escape(line) for line in shown)


def host(text: str) -> Markup:
    """Return a host, key or URL that may go on in another line after its dots and slashes, and not within a name."""
    return Markup("<wbr>").join(_BREAKS.split(str(visible(text))))


def count(number: int) -> str:
    """Return `12,345`."""
    return f"{number:,}"


def capped(number: int, most: int) -> str:
    """Return a number that was only counted up to a limit: `10,000+` when it was reached."""
    return f"{most:,}+" if number >= most else f"{number:,}"


def plural(number: int, one: str, many: str = "") -> str:
    """Return `1 rule` or `2,000 rules`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def sentence(text: str) -> str:
    """Return a phrase of the fleet's own as a sentence."""
    return f"{text[:1].upper()}{text[1:]}" + "." * (not text.endswith((".", "!", "?")))


def size(number: int) -> str:
    """Return `812 B`, `14 KiB`, `3.2 MiB`."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < _SIZE:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"  # noqa: PLR2004 - two digits do
        value /= _SIZE
    return f"{value:.1f} TiB"


def span(length: timedelta | float) -> str:
    """Return a span in its largest unit: `45 s`, `12 m`, `3 h`, `2 d`."""
    seconds = int(length.total_seconds() if isinstance(length, timedelta) else length)
    for unit, unit_seconds in _UNITS:
        if seconds >= unit_seconds:
            return f"{seconds // unit_seconds} {unit}"
    return f"{seconds} s"


def stamp(at: datetime) -> str:
    """Return a time whole: `2026-06-01 12:00:00 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(at: datetime, now: datetime) -> str:
    """Return a time as people say it: `3 m ago`, `in 2 h`, `now`."""
    passed = now - at
    if abs(passed) < timedelta(seconds=1):
        return "now"
    return f"{span(passed)} ago" if passed > timedelta(0) else f"in {span(-passed)}"


def when(at: datetime | None, now: datetime) -> Markup:
    """Return a time as people say it, as an element that has it whole for machines and for a pointer."""
    if at is None:
        return Markup("&ndash;")
    whole = at.astimezone(UTC).isoformat(timespec="seconds")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(whole, stamp(at), ago(at, now))


def clock(at: datetime) -> Markup:
    """Return a time to the millisecond, for a timeline."""
    utc = at.astimezone(UTC)
    shown = f"{utc:%Y-%m-%d %H:%M:%S}.{utc.microsecond // 1000:03d}"
    return Markup('<time datetime="{}">{} UTC</time>').format(utc.isoformat(), shown)


def _written(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
