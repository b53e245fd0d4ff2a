"""Answers that may be some seconds old."""

import asyncio

import pytest

from workers.panel.recent import Recent


class Maker:
    """Makes answers, and counts them."""

    def __init__(self) -> None:
        self.made = 0
        self.fault: Exception | None = None

    async def __call__(self) -> int:
        """Make one."""
        self.made += 1
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        return self.made


async def test_made_once_for_all_who_ask_within_the_time() -> None:
    """Also at the same moment; then anew."""
    time = 0.0
    recent, make = Recent(lambda: time), Maker()
    assert [1, 1, 1] == await asyncio.gather(*(recent.get("x", make, seconds=5) for _ in range(3)))
    time = 4.9
    assert 1 == await recent.get("x", make, seconds=5)
    time = 5.1
    assert 2 == await recent.get("x", make, seconds=5)
    recent.forget("x")
    assert 3 == await recent.get("x", make, seconds=5)


async def test_a_fault_is_told_to_all_who_asked_and_not_kept() -> None:
    """The next one asks again."""
    recent, make = Recent(), Maker()
    make.fault = ValueError("away")
    told = await asyncio.gather(*(recent.get("x", make, seconds=5) for _ in range(2)), return_exceptions=True)
    assert [ValueError, ValueError] == [type(each) for each in told]
    make.fault = None
    assert 2 == await recent.get("x", make, seconds=5)


async def test_who_goes_away_takes_the_answer_from_nobody() -> None:
    """A browser that is closed ends its own request only."""
    recent, make = Recent(), Maker()
    first = asyncio.create_task(recent.get("x", make, seconds=5))
    other = asyncio.create_task(recent.get("x", make, seconds=5))
    await asyncio.sleep(0)
    first.cancel()
    assert 1 == await other
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_all_of_one_kind_are_forgotten() -> None:
    """Others are kept."""
    recent, make = Recent(), Maker()
    for key in (("rules", "a"), ("rules", ""), ("waiting", "a"), "rules"):
        await recent.get(key, make, seconds=60)
    recent.forget_all("rules")
    assert [5, 6, 3, 4] == [
        await recent.get(key, make, seconds=60) for key in (("rules", "a"), ("rules", ""), ("waiting", "a"), "rules")
    ]
