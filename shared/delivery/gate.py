"""How much of this worker a next hop may have: its share while it answers, and nothing while it is dead.

A worker delivers a bounded number of messages at once. Without limits a destination that answers after half a minute,
or never, soon holds all of them, and the mail for everybody else waits behind it.

- At most `share` deliveries to one next hop are under way at once. The next one waits for its turn when that comes
  soon; else it is turned away, to come back when there will be room: each that is turned away takes a place in a row.
- After `FAILURES` connection failures in a row a next hop is suspended for `SUSPENDED` seconds; mail for it is put off
  without an attempt. Then one delivery is let through as a probe, and what becomes of it decides.
"""

import asyncio
import enum
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import structlog
from prometheus_client import Counter, Gauge

from shared.delivery.row import Row
from shared.mail.outcome import Busy, Deferred
from shared.mail.reply import Reply

log = structlog.get_logger()

FAILURES = 5  # connection failures in a row
SUSPENDED = 30.0  # seconds without an attempt; then one probe
# Seconds: a turn that is expected within them is waited for, at the cost of a place in the worker; and no turn longer.
_SOON = 1.0
_LOOKS = 0.25  # seconds between two looks whether it is still expected so soon
_IDLE = 600.0  # seconds after which a hop that nobody goes to is forgotten
_MANY = 1_000  # hops known before forgetting begins
_LOOK = 60.0  # seconds between two looks for hops to forget: each goes through all of them

_TURNED_AWAY = Counter("pushpush_turned_away_total", "Deliveries put off without an attempt", ["why"])
_SUSPENSIONS = Gauge("pushpush_suspended_next_hops", "Next hops that do not answer and are left alone")


class Told(Protocol):
    """Who is told of suspensions."""

    def suspended(self, hop: str, seconds: float, reason: str) -> None:
        """The hop is left alone for so long."""

    def answers(self, hop: str) -> None:
        """The hop answers again."""


class Turn:
    """One delivery's time at a next hop. It ends with its block; meanwhile it is said whether the hop was reached."""

    __slots__ = ("_hop", "began")

    def __init__(self, hop: "_Hop", began: float) -> None:
        """Begin; `Gate.turn` makes turns."""
        self._hop = hop
        self.began = began

    def reached(self) -> None:
        """The hop answered, whatever it said."""
        self._hop.reached()

    def missed(self, reply: Reply) -> None:
        """The hop could not be talked to."""
        self._hop.missed(reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hop.end(self)


class Gate:
    """Gives out turns at next hops."""

    def __init__(self, share: int, *, told: Told | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Describe the gate.

        Args:
            share: Deliveries to one next hop at once.
            told: Who is told of suspensions.
            clock: Seconds that never go back.
        """
        self._share = share
        self._told = told
        self._clock = clock
        self._hops: dict[str, _Hop] = {}
        self._looked = clock()  # when hops were last forgotten

    async def turn(self, name: str) -> Turn | Busy | Deferred:
        """Return a turn at a next hop; `Busy` when there is no room for it now, `Deferred` while it is suspended.

        Args:
            name: Of the next hop, as an operator knows it: a URL, or a host and port, or a domain.
        """
        hop = self._hops.get(name)
        if hop is None:
            hop = self._hops[name] = _Hop(name, self._share, self._told, self._clock)
            if len(self._hops) > _MANY and hop.used - self._looked > _LOOK:
                self._forget()
        return await hop.turn()

    def _forget(self) -> None:
        self._looked = self._clock()
        idle_since = self._looked - _IDLE
        for name, hop in [each for each in self._hops.items() if each[1].idle(idle_since)]:
            del self._hops[name]
            hop.forgotten()


class _Word(enum.Enum):
    """What one that waits is told."""

    GO = enum.auto()
    FULL = enum.auto()
    SUSPENDED = enum.auto()


class _Hop:
    def __init__(self, name: str, share: int, told: Told | None, clock: Callable[[], float]) -> None:
        self._name = name
        self._share = share
        self._told = told
        self._clock = clock
        self._running: dict[Turn, None] = {}  # the oldest first
        self._waiting: dict[asyncio.Future[_Word], float] = {}  # in turn; until when, by the loop's clock
        self._looking: asyncio.TimerHandle | None = None
        self._promised = 0  # turns given to some that waited and do not run yet
        self._row = Row()
        self._failures = 0
        self._fault: Reply | None = None
        self._suspended_until: float | None = None
        self._probe: Turn | None = None
        self.used = clock()

    def idle(self, since: float) -> bool:
        suspended = self._suspended_until is not None and self._suspended_until > since
        return self.used <= since and not (self._running or self._waiting or self._promised or suspended)

    def forgotten(self) -> None:
        if self._suspended_until is not None:
            _SUSPENSIONS.dec()

    async def turn(self) -> Turn | Busy | Deferred:
        self.used = now = self._clock()
        if self._suspended_until is not None:
            if now < self._suspended_until or self._probe is not None:
                return self._put_off(now)
            self._probe = self._begin(now)
            return self._probe
        if self._room:
            return self._begin(now)
        if self._expected(len(self._waiting), now) > _SOON:
            return self._turn_away(now)
        return await self._wait()

    async def _wait(self) -> Turn | Busy | Deferred:
        loop = asyncio.get_running_loop()
        place: asyncio.Future[_Word] = loop.create_future()
        self._waiting[place] = loop.time() + _SOON
        if self._looking is None:
            self._looking = loop.call_later(_LOOKS, self._look, loop)
        try:
            word = await place
        except asyncio.CancelledError:
            self._waiting.pop(place, None)
            if not place.cancelled() and place.result() is _Word.GO:
                self._promised -= 1  # given to us just as we went
                self._pass_on()
            raise
        now = self._clock()
        if word is _Word.FULL:
            return self._turn_away(now)
        if word is _Word.SUSPENDED:
            return self._put_off(now)
        self._promised -= 1
        return self._begin(now) if self._suspended_until is None else self._put_off(now)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look now and again for whom it is not worth waiting any more."""
        now = self._clock()
        for before, (place, until) in enumerate([*self._waiting.items()]):
            if loop.time() >= until or self._expected(before, now) > _SOON:
                del self._waiting[place]
                _say(place, _Word.FULL)
        self._looking = loop.call_later(_LOOKS, self._look, loop) if self._waiting else None

    def _expected(self, before: int, now: float) -> float:
        """Return the seconds until the turn of one that so many others wait before."""
        return self._row.lasts(self._age(now)) * (before + 1) / self._share

    @property
    def _room(self) -> bool:
        return len(self._running) + self._promised < self._share

    def _begin(self, now: float) -> Turn:
        turn = Turn(self, now)
        self._running[turn] = None
        return turn

    def end(self, turn: Turn) -> None:
        del self._running[turn]
        if turn is self._probe:
            self._probe = None  # should it have told nothing, the next one is the probe
        self._row.ended(self._clock() - turn.began)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and self._room:
            if _say(self._first(), _Word.GO):
                self._promised += 1

    def _first(self) -> "asyncio.Future[_Word]":
        """Take the one that has waited longest out of the row."""
        place = next(iter(self._waiting))
        del self._waiting[place]
        return place

    def _age(self, now: float) -> float:
        oldest = next(iter(self._running), None)
        return 0.0 if oldest is None else now - oldest.began

    def _turn_away(self, now: float) -> Busy:
        _TURNED_AWAY.labels("busy").inc()
        text = f"{self._name} has its share of this worker: {self._share} deliveries at once"
        seconds = self._row.place(now, self._age(now), 1 / self._share)
        return Busy(Reply(code=450, enhanced="4.4.5", text=text), seconds)

    def _put_off(self, now: float) -> Deferred:
        _TURNED_AWAY.labels("suspended").inc()
        left = max((self._suspended_until or now) - now, 0.0)
        fault = "" if self._fault is None else f": {self._fault}"
        text = f"{self._name} did not answer {self._failures} times, the next try is in {left:.0f} s{fault}"
        return Deferred(Reply(code=450, enhanced="4.4.1", text=text[:500]))

    def reached(self) -> None:
        self._failures = 0
        if self._suspended_until is None:
            return
        self._suspended_until = None
        _SUSPENSIONS.dec()
        log.info("next hop answers again", hop=self._name)
        if self._told is not None:
            self._told.answers(self._name)

    def missed(self, reply: Reply) -> None:
        self._failures += 1
        self._fault = reply
        if self._failures < FAILURES:
            return
        if self._suspended_until is None:
            _SUSPENSIONS.inc()
            log.warning("next hop suspended", hop=self._name, failures=self._failures, reply=str(reply))
        self._suspended_until = self._clock() + SUSPENDED
        while self._waiting:
            _say(self._first(), _Word.SUSPENDED)
        if self._told is not None:
            self._told.suspended(self._name, SUSPENDED, str(reply))


def _say(place: "asyncio.Future[_Word]", word: _Word) -> bool:
    """Tell one that waits; False when it was cancelled, and has not yet had the time to leave."""
    if place.done():
        return False
    place.set_result(word)
    return True
