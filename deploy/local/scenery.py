"""A day of believable mail for pictures of the panel: rules, traffic, waiting mail, dead letters, and people.

It is written by the code that the rooms use, so it can be nothing that they would not write.
"""

import itertools
import math
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from shared.mail.envelope import Delivery, Envelope
from shared.mail.event import Batch, Event, Kind
from shared.mail.privacy import Privacy
from shared.mail.reply import Reply
from shared.mail.route import Route
from shared.mail.rule import make_rule
from shared.store.dead import DeadLetters, Letter
from shared.store.deferred import Deferred
from shared.store.hops import NextHops
from shared.store.journal import Journal
from shared.store.overrides import Overrides
from shared.store.pool import Pool
from shared.store.tokens import Role, Tokens

STORY: Final = "0f6a41c2-8d0e-4b53-9a57-2f1d90c7be11"  # the message whose trace is worth a look

_PIECE: Final = 2_000  # events in one batch
_DAY: Final = 24 * 60  # minutes
_BUSY: Final = 110  # messages a minute at noon
_OUTAGES: Final = ((95, 140), (22, 30))  # minutes ago
_DOMAINS: Final = (
    ("bigmail.example", 40, 0.01, 0.002),  # name, weight, part deferred, part given up
    ("nord.example", 14, 0.02, 0.004),
    ("uni-west.example", 12, 0.04, 0.01),
    ("riverbank.example", 9, 0.01, 0.0),
    ("clinic.example", 8, 0.02, 0.003),
    ("harbour.example", 6, 0.35, 0.02),
    ("museum.example", 4, 0.03, 0.01),
    ("school.example", 4, 0.05, 0.06),
    ("papers.example", 2, 0.6, 0.05),
    ("garden.example", 1, 0.0, 0.0),
)
_RELAY: Final = "relay.partner.example"
_RULES: Final = (
    # key, target, comment, who made it, transport, days until it ends
    ("harbour.example", f"{_RELAY}:2525", "Their line is cut since Tuesday, ticket 4711", "maria", "auto", 2),
    ("*.nord.example", "https://exchange.north.example", "Blocked by the national filter", "tomasz", "https", None),
    ("papers.example", "mx1.partner.example,mx2.partner.example", "Moves house; two relays", "maria", "smtp", 6),
    ("[192.0.2.17]", "mail.clinic.example", "Old address of the clinic", "ci-deploy", "auto", None),
    ("uni-west.example", f"https://{_RELAY}:8443", "Trial with a tenth of the mail", "tomasz", "auto", 1),
    ("archive.example", "archive-2.example", "", "ci-deploy", "auto", None),
    ("museum.example", "203.0.113.80:25", "Their DNS is broken; address from their admin", "ines", "smtp", None),
)
_PEOPLE: Final[tuple[tuple[str, Role], ...]] = (
    ("maria", "admin"), ("tomasz", "operator"), ("ines", "operator"), ("ci-deploy", "operator"), ("grafana", "viewer"),
)  # fmt: skip
_SENDERS: Final = ("news@sender.example", "office@sender.example", "ana@sender.example", "billing@sender.example")
_NAMES: Final = ("ada", "boris", "chen", "dolores", "emil", "farah", "goran", "hana", "ivo", "june", "kofi", "lena")
_REPLIES: Final = (
    (451, "4.7.1", "Greylisted, please try again in 300 seconds"),
    (421, "4.3.2", "Service not available, closing transmission channel"),
    (452, "4.2.2", "Mailbox full"),
    (450, "4.7.25", "Client host rejected: cannot find your hostname"),
)


async def fill(pool: Pool, now: datetime) -> dict[str, str]:
    """Fill empty tables with what a day has brought; return the tokens of the people by their names."""
    chance = random.Random(4711)
    secrets = {name: await Tokens(pool).make(name, role, by="admin-token", via="cli") for name, role in _PEOPLE}
    await _rules(pool, now)
    await _journal(pool, now, chance)
    await _waiting(pool, now, chance)
    await _dead(pool)
    hops = NextHops(pool)
    await hops.remember("harbour.example", "suspended", 24, "connection timed out, 5 times in a row")
    await hops.remember("https://mail.clinic.example/mxdeliv", "without mxdeliv", 1_320, "404, an HTML page")
    await hops.remember("papers.example", "suspended", 9, "connection refused, 5 times in a row")
    return secrets


async def _rules(pool: Pool, now: datetime) -> None:
    rules = Overrides(pool)
    for key, target, comment, actor, transport, days in _RULES:
        rule = make_rule(
            key,
            target,
            comment=comment,
            transport=transport,  # type: ignore[arg-type] # one of three, above
            expires_at=None if days is None else now + timedelta(days=days, hours=3),
            share=10 if "tenth" in comment else None,
        )
        await rules.set(rule, actor=actor, release=True)
    await rules.enable("archive.example", enabled=False, actor="ines", release=True)


async def _journal(pool: Pool, now: datetime, chance: random.Random) -> None:
    journal = Journal(pool, Privacy())
    events = sorted(itertools.chain(_day(now, chance), _story(now)), key=lambda each: each.at)
    for number, start in enumerate(range(0, len(events), _PIECE), 1):
        piece = tuple(events[start : start + _PIECE])
        batch = Batch(source="scenery", number=number, emitted=start + len(piece), events=piece)
        await journal.record([batch], now=now)


def _day(now: datetime, chance: random.Random) -> Iterator[Event]:
    weights = [weight for _, weight, *_ in _DOMAINS]
    for minute in range(_DAY):
        at = now - timedelta(minutes=minute)
        patience = 3 if any(first <= minute <= last for first, last in _OUTAGES) else 1
        daylight = 0.35 + 0.65 * max(0.0, math.sin((at.hour + at.minute / 60 - 5) / 24 * 2 * math.pi))
        for _ in range(round(_BUSY * daylight * chance.uniform(0.75, 1.25))):
            ((domain, _, deferred, lost),) = chance.choices(_DOMAINS, weights)
            when = at - timedelta(seconds=chance.random() * 59)
            yield from _one(domain, min(0.9, deferred * patience), lost, when, chance)


def _one(domain: str, deferred: float, lost: float, at: datetime, chance: random.Random) -> Iterator[Event]:
    """Return what happened to one recipient: routed, and then one attempt."""
    dice, size, ms = chance.random(), chance.randint(1_800, 90_000), chance.randint(20, 900)
    id_ = f"{chance.getrandbits(64):016x}"
    routed = Event(
        at=at - timedelta(milliseconds=ms),
        kind="routed",
        id=id_,
        recipient=f"{chance.choice(_NAMES)}@{domain}",
        domain=domain,
        room="router",
        version=8,
        size=size,
        accepted_at=at,
        sender=chance.choice(_SENDERS),
        header_id=f"<{id_}@sender.example>",
    )
    yield routed
    host, room = f"mx1.{domain}", chance.choice(("https", "https", "smtp"))
    if dice < lost:
        yield _tried(routed, "bounced", at, room=room, mta=host, reply=(550, "5.1.1", "No such user here"), ms=ms)
    elif dice < lost + deferred:
        event = _tried(routed, "deferred", at, room=room, mta=host, reply=chance.choice(_REPLIES), ms=ms)
        yield replace(event, until=at + timedelta(minutes=5))
    else:
        yield _tried(routed, "delivered", at, room=room, mta=host, reply=(250, "2.0.0", "Ok: queued"), ms=ms)


def _tried(
    routed: Event, kind: Kind, at: datetime, *, room: str, mta: str, reply: tuple[int, str, str], ms: int
) -> Event:
    code, enhanced, text = reply
    return replace(
        routed, at=at, kind=kind, room=room, attempt=1, mta=mta, code=code, enhanced=enhanced, reply=text, ms=ms,
        accepted_at=None, sender=None, header_id=None,
    )  # fmt: skip


def _story(now: datetime) -> Iterator[Event]:
    """Return the life of one message: put off, routed anew by a rule, delivered to one, refused for the other."""
    began = now - timedelta(minutes=41)
    ada = Event(
        at=began,
        kind="routed",
        id=STORY,
        recipient="ada@harbour.example",
        domain="harbour.example",
        room="router",
        version=7,
        size=18_422,
        accepted_at=began - timedelta(seconds=1),
        sender="ana@sender.example",
        header_id="<b41f.7@sender.example>",
    )
    old = replace(ada, recipient="old@harbour.example")
    yield from (ada, old)
    silence = (450, "4.4.1", "mx1.harbour.example (192.0.2.25) port 25: timed out")
    for attempt, minutes in ((1, 0), (2, 6)):
        at = began + timedelta(minutes=minutes, seconds=31)
        for each in (ada, old):
            event = _tried(each, "deferred", at, room="smtp", mta="", reply=silence, ms=30_004)
            yield replace(event, attempt=attempt, until=at + timedelta(minutes=5 * attempt))
    yield from _end(ada, old, began + timedelta(minutes=14))


def _end(ada: Event, old: Event, at: datetime) -> Iterator[Event]:
    """Return what came after a rule was made for them."""
    relay, ruled = "relay.partner.example", {"rule": "harbour.example", "version": 8, "attempt": 3}
    ada, old = (replace(each, target=f"{relay}:2525", **ruled) for each in (ada, old))
    for each in (ada, old):
        yield replace(each, at=at, kind="rerouted", attempt=0, accepted_at=None, sender=None, header_id=None)
    at += timedelta(milliseconds=240)
    no_mxdeliv = (404, "", "an HTML page, so there is no mxdeliv")
    for each in (ada, old):
        yield replace(_tried(each, "fallback", at, room="https", mta=relay, reply=no_mxdeliv, ms=212), attempt=3)
    at += timedelta(milliseconds=670)
    taken, unknown = (250, "2.0.0", "Ok: queued as 4Tx1Qz"), (550, "5.1.1", "<old@harbour.example>: user unknown")
    yield replace(_tried(ada, "delivered", at, room="smtp", mta=relay, reply=taken, ms=655), attempt=3)
    yield replace(_tried(old, "bounced", at, room="smtp", mta=relay, reply=unknown, ms=655), attempt=3)
    at += timedelta(milliseconds=24)
    yield replace(
        _tried(old, "reported", at, room="smtp", mta="", reply=(0, "", ""), ms=0), attempt=0, report="5c1e02ab-rep"
    )


async def _waiting(pool: Pool, now: datetime, chance: random.Random) -> None:
    deferred = Deferred(pool)
    for domain, many in (
        ("harbour.example", 61),
        ("papers.example", 34),
        ("uni-west.example", 9),
        ("school.example", 3),
    ):
        for _ in range(many):
            accepted = now - timedelta(minutes=chance.expovariate(1 / 70) + 2)
            code, enhanced, text = chance.choice(_REPLIES)
            envelope = Envelope(
                id=f"{chance.getrandbits(64):016x}",
                mail_from=chance.choice(_SENDERS),
                rcpt_to=tuple(f"{name}@{domain}" for name in chance.sample(_NAMES, chance.choice((1, 1, 1, 2, 5)))),
                accepted_at=accepted,
            )
            delivery = Delivery(
                domain=domain,
                route=Route(version=8, key=domain, targets=("relay.partner.example:2525",))
                if domain == "harbour.example"
                else Route(version=8),
                envelope=envelope,
                attempts=chance.randint(1, 7),
                reply=Reply(code=code, enhanced=enhanced, text=text, mta=f"mx1.{domain}"),
            )
            head = f"From: {envelope.mail_from}\r\nTo: {envelope.rcpt_to[0]}\r\nSubject: Minutes of the meeting\r\n"
            await deferred.defer(
                delivery, f"{head}\r\nHello\r\n".encode(), now + timedelta(minutes=chance.uniform(0.5, 55))
            )


async def _dead(pool: Pool) -> None:
    letters = [
        Letter(
            headers={"mail_from": "news@sender.example", "reason": reason},
            data=b"Subject: Weekly news\r\n\r\nHello\r\n",
            reason=reason,
            queue="mail.outbound",
            message_id=f"gen-{number:04}",
            content_type="message/rfc822",
        )
        for number, reason in enumerate(
            ("rcpt_to is missing", "rcpt_to has 1,204 recipients, more than 1000", "mail_from is no address: 'news@'")
        )
    ]
    await DeadLetters(pool).keep(letters)
