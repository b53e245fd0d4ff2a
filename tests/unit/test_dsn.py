"""Reports to the sender: golden files, the form of RFC 3464, and nothing that a stranger must not read or write.

A golden file in tests/golden/dsn/ is rewritten on purpose only: run
`UPDATE_GOLDEN=1 pytest tests/unit/test_dsn.py`, which writes the files and fails, read the difference as a change in
behaviour, and run the tests again without the variable.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.mail.codec import from_ingress
from shared.mail.disposition import Drop, decide
from shared.mail.dsn import MAX_HEADER, MAX_RETURNED, Report, compose
from shared.mail.envelope import Delivery, Envelope
from shared.mail.outcome import Deferred, Delivered, Failed, Outcome
from shared.mail.reply import Reply
from shared.mail.retry import Schedule
from shared.mail.route import Route
from tests.unit.strategies import addresses, deliveries, domains, hostile_text, replies

GOLDEN = Path(__file__).parent.parent / "golden" / "dsn"
ACCEPTED = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
NOW = ACCEPTED + timedelta(hours=4, minutes=1)
MESSAGE = (
    b"Received: from laptop.a.example by a.example; Fri, 02 Jan 2026 03:04:01 +0000\r\n"
    b"From: Alice <alice@a.example>\r\n"
    b"To: Bob <bob@b.example>\r\n"
    b"Subject: A long subject that the sender folded\r\n"
    b" in a way of her own\r\n"
    b"Message-ID: <1@a.example>\r\n"
    b"\r\n"
    b"The body of the message.\r\n"
)
UTF8_HEADER = "From: J\u00f6rg <j\u00f6rg@b\u00fccher.example>\r\nSubject: Gr\u00fc\u00dfe\r\n\r\nbody\r\n".encode()
TOO_LARGE = MESSAGE + b"y\r\n" * (MAX_RETURNED // 3)
# Latin-1, UTF-8, and a byte that is neither.
EIGHT_BIT = b"From: J\xf6rg <joerg@a.example>\r\nSubject: Gr\xc3\xbc\xc3\x9fe\r\n\tfolded \xff\r\n\r\nbody \xe9\r\n"
UNKNOWN_USER = Reply(code=550, enhanced="5.1.1", text="<bob@b.example>: no such user here", mta="mx1.b.example")
BUSY = Reply(code=451, enhanced="4.7.1", text="Greylisted, come back later", mta="mx1.b.example")
FULL_FOR_GOOD = Reply(code=552, enhanced="5.2.2", text="The mailbox is over quota", mta="mx1.b.example")
TRY_LATER = Reply(code=451, enhanced="4.3.2", text="Try again later", mta="mx1.b.example")
HOUR = timedelta(hours=1)
FIVE_DAYS = timedelta(days=5, minutes=-20)  # the last attempt that fits in it
POLICY = Reply(code=550, enhanced="5.7.1", text="Blocked, see https://b.example/why", mta="relay.internal")
TAKEN = Reply(code=250, enhanced="2.6.0", text="queued as 4711", mta="mx1.b.example")
UTF8_WORDS = Reply(code=550, enhanced="5.1.1", text="<j\u00f6rg@b\u00fccher.example>: unbekannt", mta="mx1.b.example")
NO_ANSWER = Reply(code=450, enhanced="4.4.1", text="cannot connect to relay.internal:2525 (rule *.example)")
DIRECT = Route(version=1)
RULED = Route(version=41, key="*.example", targets=("relay.internal:2525",), transport="smtp", tls="none")


def delivery(
    *recipients: str, mail_from: str = "alice@a.example", route: Route = DIRECT, full: bool = False
) -> Delivery:
    """Return a delivery, by default without a rule, to bob."""
    return Delivery(
        envelope=Envelope(
            id="0123456789abcdef0123456789abcdef",
            mail_from=mail_from,
            rcpt_to=recipients or ("bob@b.example",),
            accepted_at=ACCEPTED,
            envid="QQ314159",
            ret="FULL" if full else None,
        ),
        domain="b.example",
        route=route,
    )


def each(delivery: Delivery, answered: Reply | Mapping[str, Reply]) -> Mapping[str, Reply]:
    """Return the reply of each recipient."""
    return dict.fromkeys(delivery.envelope.rcpt_to, answered) if isinstance(answered, Reply) else answered


def failed(
    delivery: Delivery,
    answered: Reply | Mapping[str, Reply],
    *,
    expired: bool | frozenset[str] = False,
    after: timedelta | None = None,
) -> Report:
    """Return the report that recipients failed; with one reply for all, or that of each."""
    replies = each(delivery, answered)
    return Report(
        delivery=delivery,
        action="failed",
        replies=replies,
        hostname="mx.example.org",
        id="fedcba9876543210fedcba9876543210",
        now=NOW if after is None else ACCEPTED + after,
        expired=frozenset(replies if expired else ()) if isinstance(expired, bool) else expired,
    )


def delayed(delivery: Delivery, answered: Reply | Mapping[str, Reply]) -> Report:
    """Return the report that recipients are late."""
    return Report(
        delivery=delivery,
        action="delayed",
        replies=each(delivery, answered),
        hostname="mx.example.org",
        id="fedcba9876543210fedcba9876543210",
        now=NOW,
        retry_until=ACCEPTED + timedelta(days=5),
    )


def relayed(delivery: Delivery, answered: Reply | Mapping[str, Reply]) -> Report:
    """Return the report that recipients were passed on to a server that will not confirm."""
    return msgspec.structs.replace(failed(delivery, answered), action="relayed")


def withdrawn(delivery: Delivery, answered: Reply, *, tried_at: datetime | None) -> Report:
    """Return the report that those who run the fleet gave a waiting delivery up."""
    return msgspec.structs.replace(failed(delivery, answered), withdrawn=True, tried_at=tried_at)


def unknown(*recipients: str) -> dict[str, Reply]:
    """Return what a host says that names each recipient in its words."""
    return {
        each: Reply(code=550, enhanced="5.1.1", text=f"<{each}>: no such user here", mta="mx1.b.example")
        for each in recipients
    }


LONG_WORDS = Reply(
    code=554, text="x" * 400 + " http://policy.example/" + "y" * 80 + " please read " * 20, mta="mx1.b.example"
)
# Two with the same words but for the name, one whose time ran out, one who was not reached; in a delivery's order.
GROUPS = {
    "bob@b.example": UNKNOWN_USER,
    "full@b.example": FULL_FOR_GOOD,
    **unknown("carol@b.example"),
    "late@b.example": BUSY,
    "lost@b.example": NO_ANSWER,
}
TWO_GROUPS = {each: GROUPS[each] for each in ("bob@b.example", "full@b.example", "carol@b.example")}
CASES = {
    "failed": (failed(delivery(), UNKNOWN_USER), MESSAGE),
    "failed-two-recipients": (failed(delivery("bob@b.example", '"c d"@b.example'), UNKNOWN_USER), MESSAGE),
    "failed-two-groups": (failed(delivery(*TWO_GROUPS), TWO_GROUPS), MESSAGE),
    "failed-and-expired": (
        failed(delivery(*GROUPS), GROUPS, expired=frozenset({"late@b.example", "lost@b.example"})),
        MESSAGE,
    ),
    "delayed-two-groups": (
        delayed(delivery("late@b.example", "lost@b.example"), {"late@b.example": BUSY, "lost@b.example": NO_ANSWER}),
        MESSAGE,
    ),
    "failed-null-mx": (failed(delivery(), Reply(code=556, enhanced="5.1.10", text="null MX of b.example")), MESSAGE),
    "failed-long-words": (failed(delivery(), LONG_WORDS), MESSAGE),
    "failed-mailbox-full": (failed(delivery(), FULL_FOR_GOOD), MESSAGE),
    "expired": (failed(delivery(), BUSY, expired=True), MESSAGE),
    "expired-after-five-days": (failed(delivery(), TRY_LATER, expired=True, after=FIVE_DAYS), MESSAGE),
    "relayed": (relayed(delivery(full=True), TAKEN), MESSAGE),
    "expired-no-answer": (failed(delivery(route=RULED), NO_ANSWER, expired=True), MESSAGE),
    "withdrawn": (withdrawn(delivery("bob@b.example", "carol@b.example"), BUSY, tried_at=NOW - HOUR), MESSAGE),
    "withdrawn-never-tried": (withdrawn(delivery(), Reply(code=0), tried_at=None), MESSAGE),
    "withdrawn-ruled": (withdrawn(delivery(route=RULED, full=True), NO_ANSWER, tried_at=NOW - HOUR), MESSAGE),
    "delayed": (delayed(delivery(), BUSY), MESSAGE),
    "delayed-no-answer": (delayed(delivery(), NO_ANSWER), MESSAGE),
    "ruled-route": (failed(delivery(route=RULED), UNKNOWN_USER), MESSAGE),
    "ruled-route-policy": (failed(delivery(route=RULED), POLICY), MESSAGE),
    "non-ascii-recipient": (failed(delivery("j\u00f6rg+a=b@b\u00fccher.example"), UNKNOWN_USER), MESSAGE),
    "non-ascii-sender": (failed(delivery(mail_from="j\u00f6rg@b\u00fccher.example"), UNKNOWN_USER), MESSAGE),
    "non-ascii-both": (
        failed(delivery("j\u00f6rg+a=b@b\u00fccher.example", mail_from="j\u00f6rg@b\u00fccher.example"), UTF8_WORDS),
        UTF8_HEADER,
    ),
    "non-ascii-both-ret-full": (
        failed(delivery("j\u00f6rg@b.example", mail_from="j\u00f6rg@b\u00fccher.example", full=True), UNKNOWN_USER),
        UTF8_HEADER,
    ),
    "non-ascii-sender-domain": (failed(delivery(mail_from="a@b\u00fccher.example"), UNKNOWN_USER), MESSAGE),
    "eight-bit-header": (failed(delivery(), UNKNOWN_USER), EIGHT_BIT),
    "ret-full": (failed(delivery(full=True), UNKNOWN_USER), MESSAGE),
    "ret-full-eight-bit": (failed(delivery(full=True), UNKNOWN_USER), EIGHT_BIT),
    "ret-full-too-large": (failed(delivery(full=True), UNKNOWN_USER), TOO_LARGE),
    "ret-full-delayed": (delayed(delivery(full=True), BUSY), MESSAGE),
}


@pytest.mark.parametrize("name", CASES)
def test_a_report_is_as_the_golden_file_has_it(name: str) -> None:
    """A changed byte here is a change in what senders read; see the top of this file for how to rewrite one."""
    path = GOLDEN / f"{name}.eml"
    actual = compose(*CASES[name])
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(actual)
        pytest.fail(f"wrote {path.name}; read the difference and run again without UPDATE_GOLDEN")
    assert path.read_bytes() == actual


def test_every_golden_file_has_its_case() -> None:
    """A file nobody compares protects nothing."""
    assert {f"{name}.eml" for name in CASES} == {path.name for path in GOLDEN.iterdir()}


def parts_of(report: bytes) -> tuple[Message, Message, list[Message], Message]:
    """Return the report, its text, the blocks of its status and what it gives back.

    The standard library reads the status in blocks under its older name only.
    """
    root = message_from_bytes(report.replace(b"message/global-delivery-status", b"message/delivery-status"))
    parts = root.get_payload()
    assert isinstance(parts, list)
    assert len(parts) == 3
    text, status, returned = parts
    assert isinstance(text, Message)
    assert isinstance(status, Message)
    assert isinstance(returned, Message)
    blocks = status.get_payload()
    assert isinstance(blocks, list)
    return root, text, [block for block in blocks if isinstance(block, Message)], returned


def unfolded(block: Message, name: str) -> str:
    """Return a field as one line."""
    value = block[name]
    return "".join(str(value).splitlines())


CLASSES = {"failed": "5.", "delayed": "4.", "relayed": "2."}


@pytest.mark.parametrize("name", CASES)
def test_a_report_has_the_form_of_the_rfcs(name: str) -> None:
    """Mail programs and list managers read reports by machine (RFC 3464, RFC 6522, RFC 3834)."""
    report, message = CASES[name]
    root, text, blocks, returned = parts_of(compose(report, message))
    recipients = report.delivery.envelope.rcpt_to
    assert root.get_content_type() == "multipart/report"
    assert root.get_param("report-type") == "delivery-status"
    assert root["Auto-Submitted"] == "auto-replied"
    assert {"From", "To", "Subject", "Date", "Message-ID", "MIME-Version"} <= set(root.keys())
    assert not root.defects
    assert text.get_content_type() == "text/plain"
    whole = {"message/rfc822", "message/global"}
    assert returned.get_content_type() in whole | {"text/rfc822-headers", "message/global-headers"}
    assert returned.get_content_type() not in whole or report.gives_back_all
    assert all(part["Content-Description"] for part in (text, returned))
    assert blocks[0]["Reporting-MTA"] == "dns; mx.example.org"
    assert blocks[0]["Original-Envelope-Id"] == "QQ314159"
    assert blocks[0]["Arrival-Date"]
    assert len(blocks) == 1 + len(recipients)
    for block, recipient in zip(blocks[1:], recipients, strict=True):
        kind, _, address = unfolded(block, "Final-Recipient").partition("; ")
        assert (kind, address) == ("rfc822", recipient) if recipient.isascii() else kind == "utf-8"
        assert recipient.isascii() or address.isascii() != report.smtputf8
        assert block["Action"] == report.action
        assert block["Status"].startswith(
            "4." if recipient in report.expired or report.withdrawn else CLASSES[report.action]
        )
        assert (block["Last-Attempt-Date"] is not None) == (not report.withdrawn or report.tried_at is not None)
        assert (block["Will-Retry-Until"] is not None) == (report.action == "delayed")


@pytest.mark.parametrize("name", CASES)
def test_a_report_can_be_sent_by_any_server(name: str) -> None:
    """CRLF line ends only, lines below 998 octets, and no byte above 127 that is not declared."""
    data = compose(*CASES[name])
    assert b"\r" not in data.replace(b"\r\n", b"")
    assert b"\n" not in data.replace(b"\r\n", b"")
    assert max(len(line) for line in data.split(b"\r\n")) <= 998
    report, message = CASES[name]
    if message.isascii() and not report.smtputf8:
        assert data.isascii()
    # A part in 8bit makes the whole so (RFC 2045 6.4); the To field of an SMTPUTF8 report is not its body.
    body = data.partition(b"\r\n\r\n")[2]
    assert message_from_bytes(data)["Content-Transfer-Encoding"] == ("7bit" if body.isascii() else "8bit")
    assert body.isascii() or b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" in body


def test_an_expired_report_says_so_in_its_status() -> None:
    """RFC 3463 X.4.7: time ran out, whatever was answered last; class 4 is right for a failure too (RFC 3463 2)."""
    _, _, blocks, _ = parts_of(compose(failed(delivery(), BUSY, expired=True), MESSAGE))
    assert blocks[1]["Status"] == "4.4.7"
    assert blocks[1]["Diagnostic-Code"] == "smtp; 451 4.7.1 Greylisted, come back later"


def test_a_non_ascii_recipient_is_written_in_ascii() -> None:
    r"""RFC 6533 3: `\x{F6}` for an umlaut, and for the three characters that would make it ambiguous."""
    report = compose(*CASES["non-ascii-recipient"])
    assert report.isascii()
    _, _, blocks, _ = parts_of(report)
    assert unfolded(blocks[1], "Final-Recipient") == "utf-8; j\\x{F6}rg\\x{2B}a\\x{3D}b@b\\x{FC}cher.example"


def test_the_longest_recipient_is_written_whole() -> None:
    """254 octets do not fit in a line of 78, and an encoded-word would be no address to a machine."""
    recipient = f"{'a' * 64}@{'.'.join(['b' * 63, 'b' * 63, 'b' * 57, 'com'])}"
    root, _, blocks, _ = parts_of(compose(failed(delivery(recipient, mail_from=recipient), UNKNOWN_USER), MESSAGE))
    assert unfolded(blocks[1], "Final-Recipient") == f"rfc822; {recipient}"
    assert unfolded(root, "To").strip() == recipient


def test_a_sender_with_a_unicode_domain_needs_no_smtputf8() -> None:
    """The report must arrive also through a server without SMTPUTF8: a bounce that bounces is lost."""
    assert not CASES["non-ascii-sender-domain"][0].smtputf8
    assert CASES["non-ascii-sender"][0].smtputf8
    assert parts_of(compose(*CASES["non-ascii-sender-domain"]))[0]["To"] == "a@xn--bcher-kva.example"


def test_a_report_comes_back_in_as_ordinary_mail() -> None:
    """It goes through mail.outbound like any message, from the null reverse-path, with an id the codec takes."""
    report = CASES["non-ascii-sender"][0]
    envelope = from_ingress(
        compose(report, MESSAGE),
        {"mail_from": "", "rcpt_to": [report.delivery.envelope.mail_from], "smtputf8": report.smtputf8},
        content_type="message/rfc822",
        message_id=report.id,
        new_id="new",
        now=NOW,
    )
    assert envelope.is_report
    assert envelope.id == report.id


@pytest.mark.parametrize("name", ["expired-no-answer", "delayed-no-answer", "failed-null-mx"])
def test_words_of_our_own_never_reach_a_stranger(name: str) -> None:
    """They name hosts, ports and rules of the fleet; the stranger reads a sentence chosen by the code instead."""
    report, message = CASES[name]
    [reply] = report.replies.values()
    assert reply.mta is None
    data = compose(report, message)
    assert reply.text.encode() not in data
    assert not {word for word in (b"internal", b"2525", b"*.example", b"null MX", b"Diagnostic-Code") if word in data}


@pytest.mark.parametrize("reply", [UNKNOWN_USER, BUSY, NO_ANSWER])
def test_where_a_rule_sent_the_mail_is_not_told(reply: Reply) -> None:
    """No next hop and no rule in a report; without a rule the MX is public and is named."""
    ruled = compose(failed(delivery(route=RULED), reply), MESSAGE)
    assert not {word for word in (b"relay", b"*.example", b"mx1", b"Remote-MTA") if word in ruled}
    assert (b"Remote-MTA: dns; mx1.b.example" in compose(failed(delivery(), reply), MESSAGE)) == (reply.mta is not None)


@given(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=12, max_size=30), st.booleans(), st.booleans()
)
def test_no_word_of_our_own_appears_whatever_it_is(text: str, ruled: bool, late: bool) -> None:
    """For every reply without a host, in every kind of report."""
    reply = Reply(code=450, enhanced="4.4.1", text=f"zq{text}qz")
    one = delivery(route=RULED if ruled else DIRECT)
    report = delayed(one, reply) if late else failed(one, reply, expired=True)
    assert reply.text.encode() not in compose(report, MESSAGE)


@pytest.mark.parametrize("code", range(100, 600, 50))
@pytest.mark.parametrize("enhanced", ["", "4.4.1", "5.1.2", "5.7.5", "4.9.9"])
def test_there_is_a_sentence_for_every_code_of_our_own(code: int, enhanced: str) -> None:
    """A stranger is never left without a reason."""
    data = compose(failed(delivery(), Reply(code=code, enhanced=enhanced, text="secret")), MESSAGE)
    reason = data.partition(b"What happened:\r\n\r\n")[2].partition(b"\r\n\r\n")[0].strip()
    assert reason.endswith(b".")
    assert b"secret" not in data


INJECTIONS = [
    "a\r\nX-Injected: yes",
    "a\nX-Injected: yes",
    "a\rX-Injected: yes",
    "a\r\n\r\nX-Injected: yes",
    "a\x0bX-Injected: yes",
    "a\x85X-Injected: yes",
    "a\u2028X-Injected: yes",
    "=?utf-8?q?a=0D=0AX-Injected:_yes?=",
    "=?us-ascii?b?YQ0KWC1JbmplY3RlZDogeWVz?=",
    "a\r\n--report-fedcba9876543210fedcba9876543210\r\nX-Injected: yes",
    "a\r\n.\r\nX-Injected: yes",
    "a\x00\x1b[2J\r\nX-Injected: yes",
    "x" * 975 + " X-Injected: yes " + "y" * 975,
    "a \ud800\r\nX-Injected: yes",
]


@pytest.mark.parametrize("text", INJECTIONS)
@pytest.mark.parametrize("field", ["text", "mta", "enhanced", "envid"])
def test_nobody_can_write_a_field_or_part_of_a_report(text: str, field: str) -> None:
    """A peer chooses its words and name, a sender its envid: none of them begins a line of its own."""
    reply = Reply(
        code=550,
        enhanced=text if field == "enhanced" else "5.1.1",
        text=text if field == "text" else "no",
        mta=text if field == "mta" else "mx1.b.example",
    )
    one = delivery()
    if field == "envid":
        one = one.but(
            envelope=Envelope(id="q", mail_from="a@a.example", rcpt_to=("b@b.example",), accepted_at=NOW, envid=text)
        )
    data = compose(failed(one, reply), MESSAGE)
    root, _, blocks, _ = parts_of(data)
    assert not [line for line in data.split(b"\r\n") if line.startswith(b"X-Injected")]
    assert "X-Injected" not in root
    assert not [block for block in blocks if "X-Injected" in block]
    assert len(blocks) == 2
    assert max(len(line) for line in data.split(b"\r\n")) <= 998


@given(
    deliveries,
    st.lists(replies | st.builds(Reply, code=st.integers(0, 999), text=hostile_text, mta=domains), min_size=4),
    st.binary(max_size=300),
)
@example(CASES["failed"][0].delivery, [UNKNOWN_USER], b"")
@example(
    CASES["failed"][0].delivery, [UNKNOWN_USER], b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n--x--\r\n"
)
@example(
    CASES["failed"][0].delivery,
    [UNKNOWN_USER],
    b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n=",
)
def test_a_report_can_be_written_about_anything(one: Delivery, said: list[Reply], message: bytes) -> None:
    """An exception here would keep a message coming back for ever, and its sender would never hear of it."""
    if not one.envelope.mail_from:
        one = delivery(*one.envelope.rcpt_to)
    answered = dict(zip(one.envelope.rcpt_to, said, strict=False))
    some = failed(one, answered, expired=frozenset(one.envelope.rcpt_to[:1]))
    for report in (failed(one, answered), some, delayed(one, answered), relayed(one, answered)):
        data = compose(report, message)
        assert b"\n" not in data.replace(b"\r\n", b"")
        root, _, blocks, _ = parts_of(data.replace(message, b"") if len(message) > 40 else data)
        assert len(root.keys()) == 9
        assert len(blocks) == 1 + len(answered)


@given(addresses, addresses)
def test_addresses_stand_in_a_report_as_they_are(sender: str, recipient: str) -> None:
    """The sender must recognise the recipient, and the report must find the sender."""
    root, _, blocks, _ = parts_of(compose(failed(delivery(recipient, mail_from=sender), UNKNOWN_USER), MESSAGE))
    assert len(blocks) == 2
    if recipient.isascii():
        assert unfolded(blocks[1], "Final-Recipient").partition("; ")[2] == recipient
    if sender.isascii():
        assert sender.rpartition("@")[0] in unfolded(root, "To")


def test_the_header_is_given_back_without_the_body() -> None:
    """By default and with RET=HDRS; and unless it failed always, whatever RET says (RFC 3461 4.3)."""
    for name in ("failed", "ret-full-delayed", "expired", "relayed"):
        data = compose(*CASES[name])
        assert b"Subject: A long subject that the sender folded\r\n in a way of her own\r\n" in data
        assert b"The body of the message" not in data


@pytest.mark.parametrize("message", [MESSAGE, EIGHT_BIT])
def test_the_whole_message_is_given_back_byte_for_byte(message: bytes) -> None:
    """RET=FULL: also bytes that no charset explains, and folds of the sender's own."""
    assert message in compose(failed(delivery(full=True), UNKNOWN_USER), message)


def test_bare_line_ends_are_made_whole() -> None:
    """A bare LF or CR inside a report would be read differently by different servers."""
    data = compose(failed(delivery(full=True), UNKNOWN_USER), b"Subject: x\n\na\rb\n.\n")
    assert b"Subject: x\r\n\r\na\r\nb\r\n.\r\n" in data


def test_a_large_message_is_not_given_back_whole() -> None:
    """Nor a header that is larger than that: a report must not be refused for its size."""
    note = b"too large to be attached whole"
    message = b"Subject: x\r\n\r\n" + b"y" * MAX_RETURNED
    data = compose(failed(delivery(full=True), UNKNOWN_USER), message)
    assert len(data) < 4_096
    assert note in data
    assert note not in compose(failed(delivery(full=True), UNKNOWN_USER), message[:MAX_RETURNED])
    assert note not in compose(failed(delivery(), UNKNOWN_USER), message)
    message = b"X: y\r\n" * MAX_HEADER + b"\r\n"
    for full in (False, True):
        data = compose(failed(delivery(full=full), UNKNOWN_USER), message[: MAX_RETURNED + 1 if full else None])
        assert len(data) < MAX_RETURNED + 8_192


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_header_that_is_too_large_is_cut_between_lines(end: bytes) -> None:
    """Half a field would say something else, and half a character nothing at all."""
    message = (b"X: \xc3\xbc\xc3\xbc\xc3\xbc" + end) * MAX_HEADER + end
    data = compose(failed(delivery(), UNKNOWN_USER), message)
    assert len(data) < MAX_HEADER * 1.2 + 4_096
    *_, returned = parts_of(data)
    header = returned.get_payload(decode=True)
    assert isinstance(header, bytes)
    assert set(header.splitlines()) == {"X: \u00fc\u00fc\u00fc".encode()}
    assert returned["Content-Transfer-Encoding"] == "8bit"


def test_a_report_is_the_same_every_time() -> None:
    """It depends on nothing but its arguments."""
    for report, message in CASES.values():
        assert compose(report, message) == compose(report, message)


def words_of(report: Report, message: bytes = MESSAGE) -> str:
    """Return what a person reads."""
    payload = parts_of(compose(report, message))[1].get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode().replace("\r\n", "\n")


def test_a_person_reads_which_host_said_what() -> None:
    """The host is public without a rule; with one it stays our business, and so does a name that is no name."""
    assert "The mail server mx1.b.example said:\n\n    550 5.1.1 <bob@b.example>" in words_of(
        failed(delivery(), UNKNOWN_USER)
    )
    ruled = words_of(failed(delivery(route=RULED), POLICY))
    assert "The recipient's mail server said:\n\n    550 5.7.1 Blocked" in ruled
    assert "relay.internal" not in ruled
    odd = Reply(code=550, text="no", mta="nice. All is well, and somebody else")
    assert "The recipient's mail server said:\n\n    550 no" in words_of(failed(delivery(), odd))


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (timedelta(days=5), "after 5 days."),
        (timedelta(days=5, minutes=-20), "after 5 days."),
        (timedelta(days=2), "after 2 days."),
        (timedelta(hours=47), "after 47 hours."),
        (timedelta(hours=1), "after an hour."),
        (timedelta(minutes=10), "after less than an hour."),
        (timedelta(hours=-1), "after less than an hour."),
    ],
)
def test_a_person_reads_for_how_long_it_was_tried(after: timedelta, words: str) -> None:
    """Also when the clocks of two workers disagree."""
    assert f"given up {words}" in words_of(failed(delivery(), TRY_LATER, expired=True, after=after)).replace("\n", " ")


def test_who_need_do_nothing_is_told_so() -> None:
    """A late message that is sent again arrives twice."""
    late = words_of(delayed(delivery(), BUSY)).replace("\n    ", " ")
    assert "Nothing. It will be tried again until Wednesday, 7 January 2026, 03:04 UTC." in late
    assert "Nothing." in words_of(relayed(delivery(), TAKEN))
    no_end = msgspec.structs.replace(delayed(delivery(), BUSY), retry_until=None)
    assert "It will be tried again. You do not need" in words_of(no_end).replace("\n    ", " ")


def test_a_relayed_report_without_words_of_a_peer_tells_of_no_fault() -> None:
    """Nothing happened that would need words of our own."""
    assert "What happened:" not in words_of(relayed(delivery(), Reply(code=250)))


@pytest.mark.parametrize("mail_from", ["alice@a.example", "j\u00f6rg@a.example"])
def test_a_person_reads_addresses_and_words_as_they_are(mail_from: str) -> None:
    r"""`j\xf6rg` means nothing to people; quoted-printable passes every server (RFC 2045 6.7)."""
    words = words_of(failed(delivery("j\u00f6rg@b.example", mail_from=mail_from), UTF8_WORDS))
    assert "    j\u00f6rg@b.example\n" in words
    assert "550 5.1.1 <j\u00f6rg@b\u00fccher.example>: unbekannt" in words


@pytest.mark.parametrize("length", range(80))
def test_no_soft_line_break_lets_a_stranger_begin_a_part(length: int) -> None:
    """Quoted-printable breaks long words anywhere, and what follows stands at the beginning of a line."""
    report = failed(delivery(), UNKNOWN_USER)
    text = f"\u00fc{'y' * length}--report-{report.id}--"
    report = msgspec.structs.replace(
        report, replies=each(report.delivery, Reply(code=550, text=text, mta="mx1.b.example"))
    )
    assert len([line for line in compose(report, MESSAGE).split(b"\r\n") if line.startswith(b"--")]) == 4
    assert text in words_of(report)


@pytest.mark.parametrize("text", ["a \u202egnp.exe", "a\u2066b", "a\u200fb", "a\u061cb"])
def test_a_stranger_cannot_turn_words_round(text: str) -> None:
    """Marks of direction make a line look as if it said something else."""
    words = words_of(failed(delivery(), Reply(code=550, text=text, mta="mx1.b.example")))
    assert words.isascii()


@pytest.mark.parametrize(
    ("envid", "decoded"),
    [
        ("QQ314159", "QQ314159"),
        ("a+2Bb+3Dc", "a+b=c"),
        ("a+20b", "a b"),
        ("+2B41", "+41"),
        ("a+2b", "a+2b"),
        ("a+", "a+"),
        ("a+0D+0AX-Injected:+20yes", "a??X-Injected: yes"),
        ("a+00+1B+7F+85+E9b", "a?????b"),
        ("+20+20", None),
        (None, None),
    ],
)
def test_the_id_of_the_sender_comes_back_as_she_chose_it(envid: str | None, decoded: str | None) -> None:
    """RFC 3461 6.3 a, 4.2: without xtext, which only MAIL FROM needs; and nothing that is not printable (4.4)."""
    one = delivery()
    one = one.but(envelope=msgspec.structs.replace(one.envelope, envid=envid))
    data = compose(failed(one, UNKNOWN_USER), MESSAGE)
    assert parts_of(data)[2][0]["Original-Envelope-Id"] == decoded
    assert b"\r\nX-Injected" not in data


@pytest.mark.parametrize("enhanced", ["", "2.1.5", "4.1.5", "5.1.5", "9.9.9", "5.1", "5.1.1\r\nX: y"])
def test_the_status_agrees_with_the_action(enhanced: str) -> None:
    """RFC 3464 2.3.4: programs that read only one of them must come to the same end."""
    for report in (failed(delivery(), UNKNOWN_USER), delayed(delivery(), BUSY), relayed(delivery(), TAKEN)):
        reply = Reply(code=550, enhanced=enhanced, text="x", mta="mx1.b.example")
        odd = msgspec.structs.replace(report, replies=each(report.delivery, reply))
        detail = "1.5" if enhanced.endswith(".1.5") else "0.0"
        assert parts_of(compose(odd, MESSAGE))[2][1]["Status"] == CLASSES[report.action] + detail


def test_only_a_late_report_says_until_when_it_is_tried() -> None:
    """RFC 3464 2.3.9: of no other action."""
    report = msgspec.structs.replace(failed(delivery(), UNKNOWN_USER), retry_until=NOW)
    assert "Will-Retry-Until" not in parts_of(compose(report, MESSAGE))[2][1]


@pytest.mark.parametrize(
    ("name", "status", "returned"),
    [
        ("non-ascii-both", "message/global-delivery-status", "message/global-headers"),
        ("non-ascii-both-ret-full", "message/global-delivery-status", "message/global"),
        ("non-ascii-sender", "message/delivery-status", "text/rfc822-headers"),
        ("non-ascii-recipient", "message/delivery-status", "text/rfc822-headers"),
        ("ret-full-eight-bit", "message/delivery-status", "message/rfc822"),
    ],
)
def test_types_with_utf8_are_used_where_they_are_needed_only(name: str, status: str, returned: str) -> None:
    """RFC 6533 4: programs that know the older types alone still read every report that they can."""
    root = message_from_bytes(compose(*CASES[name]))
    assert [part.get_content_type() for part in root.get_payload() if isinstance(part, Message)] == [
        "text/plain",
        status,
        returned,
    ]


def test_a_header_that_is_no_utf8_does_not_claim_to_be() -> None:
    """Latin-1 in the header of a message is a fault of its sender's program; it comes back as it was."""
    report = failed(delivery(mail_from="j\u00f6rg@a.example"), UNKNOWN_USER)
    assert parts_of(compose(report, EIGHT_BIT))[3].get_content_type() == "text/rfc822-headers"


def test_utf8_words_stay_below_the_longest_line() -> None:
    """998 are octets, not characters (RFC 5322 2.1.1, RFC 6532 3.4)."""
    reply = Reply(code=550, text="\U0001f4e7" * 1_000, mta="mx1.b.example")
    data = compose(failed(delivery(mail_from="j\u00f6rg@a.example"), reply), MESSAGE)
    assert max(len(line) for line in data.split(b"\r\n")) <= 998


@pytest.mark.parametrize("outcome", [Failed(UNKNOWN_USER), Deferred(BUSY), Delivered(TAKEN)])
def test_a_report_is_never_reported_on(outcome: Outcome) -> None:
    """RFC 3461 6.1: a report comes back in from the null reverse-path, and whatever becomes of it, nobody hears."""
    envelope = from_ingress(
        compose(*CASES["failed"]),
        {"mail_from": "", "rcpt_to": ["alice@a.example"], "notify": "SUCCESS,FAILURE,DELAY"},
        content_type="message/rfc822",
        message_id="id",
        new_id="new",
        now=ACCEPTED,
    )
    one = Delivery(envelope=envelope, domain="a.example", route=DIRECT)
    verdict = decide(
        one,
        outcome,
        by="smtp",
        schedule=Schedule(waits=(timedelta(hours=1),)),
        now=ACCEPTED + timedelta(days=50),
        spread=0.0,
    )
    assert isinstance(verdict, Drop) or not getattr(verdict, "relayed", True)


def test_a_hundred_answers_are_one_report() -> None:
    """RFC 3464 2.1: a hundred unknown users of one message cost its sender one report, with her letter once."""
    recipients = [f"user{number}@b.example" for number in range(100)]
    report = failed(delivery(*recipients, full=True), unknown(*recipients))
    data = compose(report, MESSAGE + b"y" * 500_000)
    blocks = parts_of(data)[2][1:]
    assert [f"rfc822; {recipient}" for recipient in recipients] == [block["Final-Recipient"] for block in blocks]
    assert [f"smtp; 550 5.1.1 <{recipient}>: no such user here" for recipient in recipients] == [
        unfolded(block, "Diagnostic-Code") for block in blocks
    ]
    assert 1 == data.count(b"The body of the message.")
    assert len(data) < 550_000


def test_recipients_have_their_own_status_and_host() -> None:
    """RFC 3464 2.3: each block is about one recipient; nobody is told another's answer."""
    report, message = CASES["failed-and-expired"]
    assert [
        ("5.1.1", "dns; mx1.b.example", "smtp; 550 5.1.1 <bob@b.example>: no such user here"),
        ("5.2.2", "dns; mx1.b.example", "smtp; 552 5.2.2 The mailbox is over quota"),
        ("5.1.1", "dns; mx1.b.example", "smtp; 550 5.1.1 <carol@b.example>: no such user here"),
        ("4.4.7", "dns; mx1.b.example", "smtp; 451 4.7.1 Greylisted, come back later"),
        ("4.4.7", None, None),
    ] == [
        (block["Status"], block["Remote-MTA"], block["Diagnostic-Code"])
        for block in parts_of(compose(report, message))[2][1:]
    ]


def test_a_person_reads_once_what_is_true_of_many() -> None:
    """Words that differ in the recipient's name alone are one fault, told of the first; in any case of its letters."""
    names = [f"user{number}@b.example" for number in range(100)]
    replies = unknown(*(name.upper() for name in names))
    words = words_of(failed(delivery(*names), dict(zip(names, replies.values(), strict=True))))
    assert words.count("What you can do:") == 1
    assert "".join(f"    {name}\n" for name in names) in words
    assert "said of the first:\n\n    550 5.1.1 <USER0@B.EXAMPLE>: no such user here\n" in words
    assert "more: see the details below" not in words
    assert "of the first" not in words_of(failed(delivery(*names), BUSY))


def test_names_within_names_do_not_part_recipients() -> None:
    """`ann@` stands in `joann@` too."""
    names = ("ann@b.example", "joann@b.example", "jo@b.example")
    assert words_of(failed(delivery(*names), unknown(*names))).count("What you can do:") == 1


def test_a_person_reads_no_more_than_twenty_faults() -> None:
    """The rest is counted, and stands in the part for machines."""
    names = [f"user{number}@b.example" for number in range(30)]
    answered = {
        name: Reply(code=550, text=f"refused for reason {min(number, 26)}", mta="mx1.b.example")
        for number, name in enumerate(names)
    }
    words = words_of(failed(delivery(*names), answered))
    assert words.count("What you can do:") == 20
    assert "reason 19\n" in words
    assert "reason 20\n" not in words
    assert words.endswith("\n\nAnd 10 more: see the details below.\n")
    twenty = dict(list(answered.items())[:20])
    assert "more: see the details below" not in words_of(failed(delivery(*twenty), twenty))


def test_words_of_our_own_do_not_part_recipients() -> None:
    """They are not shown, so the reader could not see why."""
    answered = {
        "a@b.example": Reply(code=450, enhanced="4.4.1", text="cannot connect to 192.0.2.1"),
        "b@b.example": Reply(code=450, enhanced="4.4.1", text="cannot connect to 192.0.2.2"),
    }
    words = words_of(failed(delivery(*answered), answered, expired=True))
    assert words.count("What happened:") == 1
    assert "of the first" not in words


def test_where_a_rule_sent_the_mail_does_not_part_recipients() -> None:
    """Two relays behind a rule are the fleet's business; that there are two is as well."""
    answered = {
        f"{name}@b.example": Reply(code=550, enhanced="5.7.1", text="Blocked", mta=f"{name}.internal") for name in "ab"
    }
    words = words_of(failed(delivery(*answered, route=RULED), answered))
    assert words.count("The recipient's mail server said:\n\n    550 5.7.1 Blocked") == 1
    assert "internal" not in words
