"""Each next hop has its share of a worker, and a dead one nothing."""

import asyncio

import pytest

from shared.delivery import gate as gate_module
from shared.delivery.gate import FAILURES, SUSPENDED, Gate, Turn
from shared.mail.outcome import Busy, Deferred
from shared.mail.reply import Reply

pytestmark = pytest.mark.anyio

DOWN = Reply(code=450, enhanced="4.4.1", text="connection refused")
HOP = "b.example:25"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.time


class Ears:
    """Who is told of suspensions."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def suspended(self, hop: str, seconds: float, reason: str) -> None:
        """Note it."""
        self.heard.append(("suspended", hop, str(seconds), reason))

    def answers(self, hop: str) -> None:
        """Note it."""
        self.heard.append(("answers", hop))


@pytest.fixture
def clock() -> Clock:
    """The clock of the gate."""
    return Clock()


async def turn(gate: Gate, hop: str = HOP) -> Turn:
    """Return a turn, which there must be."""
    got = await gate.turn(hop)
    assert isinstance(got, Turn), got
    return got


async def miss(gate: Gate, times: int = 1) -> None:
    """Fail to connect so many times."""
    for _ in range(times):
        with await turn(gate) as each:
            each.missed(DOWN)


async def let_all_run() -> None:
    """Let every task get as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_hop_has_its_share_and_no_more(clock: Clock) -> None:
    """What comes beyond it waits; another hop is not concerned."""
    gate = Gate(2, clock=clock)
    first, second = await turn(gate), await turn(gate)
    waiting = asyncio.create_task(gate.turn(HOP))
    await let_all_run()
    assert not waiting.done()
    await turn(gate, "c.example:25")
    with first:
        pass
    assert isinstance(await waiting, Turn)
    with second:
        pass


async def test_turns_are_given_in_the_order_of_asking_and_never_too_many(clock: Clock) -> None:
    """Also while a turn was given and its delivery has not begun yet."""
    gate, running, most, order = Gate(3, clock=clock), 0, 0, []

    async def one(number: int) -> None:
        nonlocal running, most
        with await turn(gate):
            running += 1
            most = max(most, running)
            order.append(number)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(one(number) for number in range(50)))
    assert (3, list(range(50))) == (most, order)


async def test_a_slow_hop_turns_away_and_each_gets_a_place_in_the_row(clock: Clock) -> None:
    """Deliveries of 30 s, two at once: there is room every 15 s."""
    gate = Gate(2, clock=clock)
    with await turn(gate):
        clock.time += 30
    for _ in range(2):
        await turn(gate)
    waits = [await gate.turn(HOP) for _ in range(3)]
    assert [15, 30, 45] == [each.seconds for each in waits if isinstance(each, Busy)]


async def test_what_has_come_back_takes_no_place_twice(clock: Clock) -> None:
    """The row moves on with time. What has taken so long is expected to take as long again."""
    gate = Gate(1, clock=clock)
    await turn(gate)
    clock.time += 10
    assert [20, 40] == [each.seconds for each in [await gate.turn(HOP) for _ in range(2)] if isinstance(each, Busy)]
    clock.time += 20
    back = await gate.turn(HOP)
    assert isinstance(back, Busy)
    assert back.seconds == 20 + 60  # behind the two, and the one that runs has taken 30 s by now


async def test_nobody_waits_long_for_a_hop_that_nothing_is_known_of(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first burst to a dead destination gives its places in the worker back after a moment."""
    monkeypatch.setattr(gate_module, "_LOOKS", 0.01)
    monkeypatch.setattr(gate_module, "_SOON", 0.01)
    gate = Gate(1, clock=clock)
    held = await turn(gate)
    assert isinstance(await gate.turn(HOP), Busy)
    with held:
        pass
    await turn(gate)  # who gave up waiting has left the row


async def test_a_cancelled_wait_gives_its_turn_on(clock: Clock) -> None:
    """Also when the turn was given in the same moment."""
    gate = Gate(1, clock=clock)
    held = await turn(gate)
    first, second = asyncio.create_task(gate.turn(HOP)), asyncio.create_task(gate.turn(HOP))
    await let_all_run()
    with held:
        pass
    first.cancel()
    assert isinstance(await second, Turn)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_dead_hop_is_suspended_then_probed_then_open(clock: Clock) -> None:
    """Five failures in a row; meanwhile nothing is tried; then one delivery alone decides."""
    ears = Ears()
    gate = Gate(8, told=ears, clock=clock)
    await miss(gate, FAILURES)
    put_off = await gate.turn(HOP)
    assert isinstance(put_off, Deferred)
    assert "connection refused" in put_off.reply.text
    clock.time += SUSPENDED
    probe = await turn(gate)
    assert isinstance(await gate.turn(HOP), Deferred)  # one probe, not eight
    with probe:
        probe.reached()
    with await turn(gate):
        await turn(gate)
    assert [("suspended", HOP, "30.0", str(DOWN)), ("answers", HOP)] == ears.heard


async def test_a_probe_that_fails_suspends_again(clock: Clock) -> None:
    """One attempt each half minute is what a dead host costs."""
    gate = Gate(8, clock=clock)
    await miss(gate, FAILURES)
    clock.time += SUSPENDED
    await miss(gate)
    assert isinstance(await gate.turn(HOP), Deferred)
    clock.time += SUSPENDED
    await turn(gate)


async def test_a_probe_that_tells_nothing_leaves_it_to_the_next(clock: Clock) -> None:
    """It may have been cancelled, or have had nothing to connect to."""
    gate = Gate(8, clock=clock)
    await miss(gate, FAILURES)
    clock.time += SUSPENDED
    with await turn(gate):
        pass
    await turn(gate)


async def test_an_answer_between_failures_counts_anew(clock: Clock) -> None:
    """In a row means in a row."""
    gate = Gate(8, clock=clock)
    await miss(gate, FAILURES - 1)
    with await turn(gate) as answered:
        answered.reached()
    await miss(gate, FAILURES - 1)
    await turn(gate)


async def test_who_waits_when_a_hop_is_suspended_is_put_off(clock: Clock) -> None:
    """Each would else spend half a minute on a host that is known to be dead."""
    gate = Gate(FAILURES, clock=clock)
    turns = [await turn(gate) for _ in range(FAILURES)]
    waiting = [asyncio.create_task(gate.turn(HOP)) for _ in range(3)]
    await let_all_run()
    for number, each in enumerate(turns, 1):
        with each:
            for _ in range(FAILURES if number == 1 else 1):
                each.missed(DOWN)
    assert all(isinstance(each, Deferred) for each in await asyncio.gather(*waiting))


async def test_a_gate_does_not_remember_every_hop_for_ever(clock: Clock) -> None:
    """Direct mail goes to any number of domains; those in use and those suspended lately are kept."""
    gate = Gate(2, clock=clock)
    await miss(gate, FAILURES)
    held = await turn(gate, "held.example")
    for number in range(3_000):
        clock.time += 1
        with await turn(gate, f"d{number}.example"):
            pass
    assert len(gate._hops) < 2_000
    assert {"held.example"} == gate._hops.keys() & {HOP, "held.example"}
    with held:
        pass
    assert clock.time > SUSPENDED + 1_000
    await turn(gate)


async def test_a_place_is_given_to_nobody_who_has_gone(clock: Clock) -> None:
    """Two who waited are cancelled and called in the same moment: neither disturbs who calls, nor keeps the turn."""
    gate = Gate(1, clock=clock)
    for failures in (0, FAILURES):
        held = await turn(gate)
        gone = [asyncio.create_task(gate.turn(HOP)) for _ in range(2)]
        await let_all_run()
        for each in gone:
            each.cancel()
        with held:
            for _ in range(failures):
                held.missed(DOWN)
        await asyncio.gather(*gone, return_exceptions=True)
        clock.time += SUSPENDED
        with await turn(gate) as next_one:
            next_one.reached()


async def test_the_row_has_an_end(clock: Clock) -> None:
    """A hop that was slow for an hour has room at once when it is quick again."""
    gate = Gate(1, clock=clock)
    with await turn(gate):
        clock.time += 30
        waits = [await gate.turn(HOP) for _ in range(1_000)]
        assert 300 == max(each.seconds for each in waits if isinstance(each, Busy))
    clock.time += 300
    with await turn(gate):
        back = await gate.turn(HOP)
        assert isinstance(back, Busy)
        assert back.seconds < 60
