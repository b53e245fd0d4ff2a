"""The scenes of the demo. Each plays on real peers, checks what it sees, and returns it in words."""

import asyncio
import email
import email.message
from collections.abc import Awaitable, Callable
from typing import Any

from deploy.local.stage import REFUSED, SENDER, Differs, Stage, message
from shared.broker import topology
from tests.peers.inbox import Inbox, Received

Tell = Callable[[str], None]
FLOW = 400  # messages while the rule changes
PACE = 0.01  # seconds between two of them


async def by_https(stage: Stage, tell: Tell) -> str:
    """(a) A ruled domain is delivered by HTTPS."""
    tell(f"rule: a.example -> {stage.https.url}")
    applied = await stage.pushpush("endpoint-cache", "set", "a.example", stage.https.url, "--comment", "our partner")
    before = len(stage.https.received)  # the probe's empty request
    sent = await stage.send("by HTTPS", "friend@a.example")
    got = await _next(stage.https, before + 1)
    _same("recipient", got.rcpt_to, ("friend@a.example",))
    _same("sender", got.mail_from, SENDER)
    _below_our_received(got.body, sent)
    return (
        f"The rule was applied by {len(applied['applied'])} routers in {applied['milliseconds']} ms. Mail to "
        f"friend@a.example arrived at the partner by HTTPS, still addressed to friend@a.example, its {len(sent)} bytes "
        "unchanged below our Received field."
    )


async def by_smtp(stage: Stage, tell: Tell) -> str:
    """(b) A partner without mxdeliv is reached by SMTP."""
    target = f"127.0.0.1:{stage.smtp.port}"
    tell(f"rule: b.example -> {target}")
    await stage.pushpush("endpoint-cache", "set", "b.example", target)
    sent = await stage.send("by SMTP", "friend@b.example")
    got = await _next(stage.smtp, 1)
    _same("recipient", got.rcpt_to, ("friend@b.example",))
    _below_our_received(got.body, sent)
    return (
        "HTTPS was tried first and nobody listened, so mail to friend@b.example went on to the SMTP worker and "
        f"arrived at {target}."
    )


async def change_in_flow(stage: Stage, tell: Tell) -> str:
    """(c) A rule changes while mail flows; after the command returned not one message goes to the old target."""
    await stage.pushpush("endpoint-cache", "set", "moving.example", stage.https.url, "--no-probe")
    old_before, new_before = len(stage.https.received), len(stage.smtp.received)
    handed_in = 0

    async def flow() -> None:
        nonlocal handed_in
        for number in range(FLOW):
            recipient = f"n{number}@moving.example"
            await stage.publish(message("flow", SENDER, recipient), {"mail_from": SENDER, "rcpt_to": [recipient]})
            handed_in = number + 1
            tell(f"{handed_in} of {FLOW} messages handed in")
            await asyncio.sleep(PACE)

    flowing = asyncio.create_task(flow())
    await asyncio.sleep(FLOW * PACE / 4)
    target = f"127.0.0.1:{stage.smtp.port}"
    changed = await stage.pushpush("endpoint-cache", "set", "moving.example", target, "--no-probe")
    returned_at, old_at_return = handed_in, len(stage.https.received) - old_before
    await flowing

    def seen(peer: Inbox, start: int) -> list[int]:
        mine = [each for each in peer.received[start:] if each.rcpt_to[0].endswith("@moving.example")]
        return [int(each.rcpt_to[0].partition("@")[0][1:]) for each in mine]

    await _until(lambda: len(seen(stage.https, old_before)) + len(seen(stage.smtp, new_before)) >= FLOW, "all mail")
    old, new = seen(stage.https, old_before), seen(stage.smtp, new_before)
    _same("messages that arrived", sorted(old + new), list(range(FLOW)))
    _same("messages handed in after the command returned, at the old target", [n for n in old if n >= returned_at], [])
    if not old or not new:
        raise Differs(
            f"{len(old)} messages at the old target and {len(new)} at the new one: the change was not in mid-flow"
        )
    return (
        f"{FLOW} messages flowed while the rule changed. The command returned after message {returned_at}, applied by "
        f"{len(changed['applied'])} routers in {changed['milliseconds']} ms. Of the {FLOW - returned_at} handed in "
        f"after that, not one went to the old target. {len(old)} of those before did, {len(old) - old_at_return} of "
        "them after the command returned. Every message arrived exactly once."
    )


async def outage(stage: Stage, tell: Tell) -> str:
    """(d) A destination is down: deferred; a rule is added, and what waited is delivered at the partner."""
    before = len(stage.smtp.received)
    sent = await stage.send("during an outage", "friend@down.example")
    tell("waiting for the delivery to be deferred")
    waiting: list[dict[str, Any]] = []
    for _ in range(100):
        waiting = (await stage.pushpush("queue", "list", "--domain", "down.example"))["waiting"]
        if waiting:
            break
        await asyncio.sleep(0.2)
    _same("waiting deliveries", len(waiting), 1)
    tell("adding a rule, which makes the waiting mail due")
    changed = await stage.pushpush("endpoint-cache", "set", "down.example", f"127.0.0.1:{stage.smtp.port}")
    _same("deliveries made due by the rule", changed["due"], 1)
    got = await _next(stage.smtp, before + 1)
    _same("recipient", got.rcpt_to, ("friend@down.example",))
    _below_our_received(got.body, sent)
    left = (await stage.pushpush("queue", "list", "--domain", "down.example"))["waiting"]
    _same("deliveries that still wait", left, [])
    return (
        "Nothing listened at the MX host of down.example; the message was deferred "
        f"({waiting[0]['reply'].split(':')[0]}). A rule was added; that alone made the waiting message due at once, "
        "and it was delivered at the partner."
    )


async def refused(stage: Stage, tell: Tell) -> str:
    """(e) A recipient is refused: the report arrives at the sender's server."""
    await stage.pushpush("endpoint-cache", "set", "refused.example", f"127.0.0.1:{stage.smtp.port}")
    await stage.pushpush("endpoint-cache", "set", "sender.example", f"127.0.0.1:{stage.home.port}")
    tell(f"sending to {REFUSED}")
    await stage.send("to nobody", REFUSED)
    got = await _next(stage.home, 1)
    report = email.message_from_bytes(got.body)
    _same("the report's reverse-path", got.mail_from, "")
    _same("the report's recipient", got.rcpt_to, (SENDER,))
    _same("the report's type", report.get_content_type(), "multipart/report")
    block = next((part for part in report.walk() if part["Final-Recipient"]), email.message.Message())
    found = {name: block[name] for name in ("Final-Recipient", "Action", "Status")}
    _same("the report", found, {"Final-Recipient": f"rfc822; {REFUSED}", "Action": "failed", "Status": "5.1.1"})
    return f"The partner refused {REFUSED} (550 5.1.1). A report (RFC 3464) arrived at the sender's own server."


async def unreadable(stage: Stage, tell: Tell) -> str:
    """(f) An unreadable message is kept whole."""
    body = b"Subject: no recipients\r\n\r\n\xff\x00 kept as it is\r\n"
    tell("publishing a message without rcpt_to")
    await stage.publish(body, {"mail_from": SENDER})
    queue = await stage.channel.get_queue(topology.UNDECODABLE)
    for _ in range(100):
        kept = await queue.get(fail=False)
        if kept is not None:
            break
        await asyncio.sleep(0.1)
    else:
        raise Differs("the unreadable message is not in mail.undecodable")
    await kept.reject(requeue=True)
    _same("the bytes kept", kept.body, body)
    _same("the reason", kept.headers["reason"], "rcpt_to is missing, not a list of strings")
    return f"Its {len(body)} bytes stand untouched in mail.undecodable, with the reason: rcpt_to is missing."


async def traced(stage: Stage, tell: Tell) -> str:
    """(g) What became of a message is on record: the one of the outage, from its arrival to its delivery."""
    tell("asking for the trace of friend@down.example")
    events: list[dict[str, Any]] = []
    for _ in range(100):
        events = (await stage.pushpush("trace", "friend@down.example"))["events"]
        if events and events[-1]["kind"] == "delivered":
            break
        await asyncio.sleep(0.1)
    _same("the life of the message", [each["kind"] for each in events][:2], ["routed", "deferred"])
    _same("its end", [each["kind"] for each in events][-1:], ["delivered"])
    ruled = [each for each in events if each.get("rule") == "down.example"]
    _same("the rule under which it was delivered", ruled[-1:], events[-1:])
    last = events[-1]
    return (
        f"Its trace: {', '.join(each['kind'] for each in events)}. It was routed without a rule, deferred, and then "
        f"delivered under rule {last['rule']} of version {last['version']}: {last['mta']} said {last['code']} in "
        f"{last.get('ms', 0)} ms."
    )


SCENES: tuple[tuple[str, str, Callable[[Stage, Tell], Awaitable[str]]], ...] = (
    ("a", "a ruled domain, delivered by HTTPS", by_https),
    ("b", "a partner without mxdeliv, reached by SMTP", by_smtp),
    ("c", "a rule changed while mail flows", change_in_flow),
    ("d", "an outage, and a rule that rescues waiting mail", outage),
    ("e", "a refused recipient, reported to the sender", refused),
    ("f", "an unreadable message, kept whole", unreadable),
    ("g", "the trace of the message that waited", traced),
)


async def _next(peer: Inbox, count: int) -> Received:
    try:
        return (await peer.wait_for(count, within=30))[count - 1]
    except TimeoutError as error:
        raise Differs(str(error)) from error


async def _until(condition: Callable[[], bool], wanted: str) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise Differs(f"{wanted}: not within 30 seconds")


def _same(what: str, seen: object, expected: object) -> None:
    if seen != expected:
        raise Differs(f"{what}: expected {expected!r}, but saw {seen!r}")


def _below_our_received(got: bytes, sent: bytes) -> None:
    if not got.startswith(b"Received: by mail.pushpush.example (pushpush)") or not got.endswith(b"\r\n" + sent):
        raise Differs(f"the message is not our Received field and then the bytes sent: {got!r}")
