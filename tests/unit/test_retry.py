"""The patience of the fleet: when a message is tried again, and when no more."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.retry import JITTER, Schedule, parse_duration, parse_waits
from tests.unit.strategies import hostile_text

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MINUTES = (1, 5, 15)
SCHEDULE = Schedule(waits=tuple(timedelta(minutes=each) for each in MINUTES))


@pytest.mark.parametrize(("attempts", "minutes"), [(1, 1), (2, 5), (3, 15), (4, 15), (1_000, 15)])
def test_each_attempt_has_its_wait_and_the_last_repeats(attempts: int, minutes: int) -> None:
    """1m after the first, 5m after the second, and so on."""
    expected = NOW + timedelta(minutes=minutes)
    assert expected == SCHEDULE.next_attempt(attempts=attempts, accepted_at=NOW, now=NOW, spread=0)


@pytest.mark.parametrize(("spread", "seconds"), [(-1, 270), (-0.5, 285), (0, 300), (1, 330)])
def test_the_dice_move_the_wait_by_a_tenth(spread: float, seconds: int) -> None:
    """What was deferred together does not come back together."""
    expected = NOW + timedelta(seconds=seconds)
    assert expected == SCHEDULE.next_attempt(attempts=2, accepted_at=NOW, now=NOW, spread=spread)


@given(st.integers(1, 100), st.floats(-1, 1), st.timedeltas(timedelta(0), timedelta(days=6)))
def test_a_message_is_tried_within_bounds_and_max_age(attempts: int, spread: float, age: timedelta) -> None:
    """Never at once, never after max_age, and never lost between: there is a next time or there is None."""
    now = NOW + age
    at = SCHEDULE.next_attempt(attempts=attempts, accepted_at=NOW, now=now, spread=spread)
    wait = SCHEDULE.waits[min(attempts, 3) - 1]
    if at is None:
        assert now + wait * (1 + JITTER) > NOW + SCHEDULE.max_age
    else:
        assert wait * (1 - JITTER) <= at - now <= wait * (1 + JITTER)
        assert at <= NOW + SCHEDULE.max_age


@pytest.mark.parametrize(("late", "tried"), [(timedelta(0), True), (timedelta(microseconds=1), False)])
def test_the_last_moment_is_max_age_itself(late: timedelta, tried: bool) -> None:
    """An attempt at the very end of max_age is made; one that would come later is not waited for."""
    now = NOW + SCHEDULE.max_age - timedelta(minutes=15) + late
    at = SCHEDULE.next_attempt(attempts=3, accepted_at=NOW, now=now, spread=0)
    assert (NOW + SCHEDULE.max_age if tried else None) == at


def test_the_patience_is_that_of_the_rfc() -> None:
    """RFC 5321 4.5.4.1: 4 to 5 days; warned of after 4 hours."""
    assert SCHEDULE.max_age == timedelta(days=5)
    assert SCHEDULE.warn_after == timedelta(hours=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1s", timedelta(seconds=1)),
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        (" 4h ", timedelta(hours=4)),
        ("5d", timedelta(days=5)),
        ("007d", timedelta(days=7)),
        ("3650d", timedelta(days=3_650)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: timedelta) -> None:
    """Seconds, minutes, hours or days."""
    assert expected == parse_duration(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "m", "5", "0s", "00m", "-1m", "+1m", "1.5h", "1 h", "1w", "1M", "1ms", "1h30m", "m5", "\u0665m", "\u00b2m",
        "1_0m", "3651d", "99999999d", "9" * 30 + "d", "9" * 5_000 + "s",
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Zero would retry in a circle; ages of the world would overflow the calendar on the first deferral."""
    with pytest.raises(ValueError, match=r"is not a duration|is too long|Exceeds the limit"):
        parse_duration(text)


@given(hostile_text | st.builds("{}{}".format, st.integers(), st.sampled_from("smhd")))
def test_any_text_is_a_duration_that_can_be_waited_or_a_value_error(text: str) -> None:
    """Whatever an operator writes, adding it to a date works."""
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert datetime(2026, 1, 1, tzinfo=UTC) + duration > datetime(2026, 1, 1, tzinfo=UTC)


def test_waits_are_durations_between_commas() -> None:
    """RETRY_SCHEDULE, for example."""
    expected = (timedelta(minutes=1), timedelta(minutes=5), timedelta(hours=1))
    assert expected == parse_waits("1m, 5m,1h")


@pytest.mark.parametrize("text", ["", ",", "1m,", "1m,,5m", "1m;5m"])
def test_a_hole_in_the_waits_is_refused(text: str) -> None:
    """Without this a comma too many would be a wait of nothing."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_waits(text)
