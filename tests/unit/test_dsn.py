"""Reports to the sender: golden files, the form of RFC 3464, and nothing that a stranger must not read or write.

A golden file in tests/golden/dsn/ is rewritten on purpose only: run
`UPDATE_GOLDEN=1 pytest tests/unit/test_dsn.py`, which writes the files and fails, read the difference as a change in
behaviour, and run the tests again without the variable.
"""

import os
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.mail.codec import from_ingress
from shared.mail.dsn import MAX_RETURNED, Report, compose
from shared.mail.envelope import Delivery, Envelope
from shared.mail.reply import Reply
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
# Latin-1, UTF-8, and a byte that is neither.
EIGHT_BIT = b"From: J\xf6rg <joerg@a.example>\r\nSubject: Gr\xc3\xbc\xc3\x9fe\r\n\tfolded \xff\r\n\r\nbody \xe9\r\n"
UNKNOWN_USER = Reply(code=550, enhanced="5.1.1", text="<bob@b.example>: no such user here", mta="mx1.b.example")
BUSY = Reply(code=451, enhanced="4.7.1", text="Greylisted, come back later", mta="mx1.b.example")
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


def failed(delivery: Delivery, reply: Reply, *, expired: bool = False) -> Report:
    """Return the report that recipients failed."""
    return Report(
        delivery=delivery,
        action="failed",
        reply=reply,
        hostname="mx.example.org",
        id="fedcba9876543210fedcba9876543210",
        now=NOW,
        expired=expired,
    )


def delayed(delivery: Delivery, reply: Reply) -> Report:
    """Return the report that recipients are late."""
    return Report(
        delivery=delivery,
        action="delayed",
        reply=reply,
        hostname="mx.example.org",
        id="fedcba9876543210fedcba9876543210",
        now=NOW,
        retry_until=ACCEPTED + timedelta(days=5),
    )


LONG_WORDS = Reply(
    code=554, text="x" * 400 + " http://policy.example/" + "y" * 80 + " please read " * 20, mta="mx1.b.example"
)
CASES = {
    "failed": (failed(delivery(), UNKNOWN_USER), MESSAGE),
    "failed-two-recipients": (failed(delivery("bob@b.example", '"c d"@b.example'), UNKNOWN_USER), MESSAGE),
    "failed-null-mx": (failed(delivery(), Reply(code=556, enhanced="5.1.10", text="null MX of b.example")), MESSAGE),
    "failed-long-words": (failed(delivery(), LONG_WORDS), MESSAGE),
    "expired": (failed(delivery(), BUSY, expired=True), MESSAGE),
    "expired-no-answer": (failed(delivery(route=RULED), NO_ANSWER, expired=True), MESSAGE),
    "delayed": (delayed(delivery(), BUSY), MESSAGE),
    "delayed-no-answer": (delayed(delivery(), NO_ANSWER), MESSAGE),
    "ruled-route": (failed(delivery(route=RULED), UNKNOWN_USER), MESSAGE),
    "non-ascii-recipient": (failed(delivery("j\u00f6rg+a=b@b\u00fccher.example"), UNKNOWN_USER), MESSAGE),
    "non-ascii-sender": (failed(delivery(mail_from="j\u00f6rg@b\u00fccher.example"), UNKNOWN_USER), MESSAGE),
    "non-ascii-sender-domain": (failed(delivery(mail_from="a@b\u00fccher.example"), UNKNOWN_USER), MESSAGE),
    "eight-bit-header": (failed(delivery(), UNKNOWN_USER), EIGHT_BIT),
    "ret-full": (failed(delivery(full=True), UNKNOWN_USER), MESSAGE),
    "ret-full-eight-bit": (failed(delivery(full=True), UNKNOWN_USER), EIGHT_BIT),
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
    """Return the report, its text, the blocks of its status and what it gives back."""
    root = message_from_bytes(report)
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
    assert returned.get_content_type() in ("text/rfc822-headers", "message/rfc822")
    assert blocks[0]["Reporting-MTA"] == "dns; mx.example.org"
    assert blocks[0]["Original-Envelope-Id"] == "QQ314159"
    assert blocks[0]["Arrival-Date"]
    assert len(blocks) == 1 + len(recipients)
    for block, recipient in zip(blocks[1:], recipients, strict=True):
        kind, _, address = unfolded(block, "Final-Recipient").partition("; ")
        assert (kind, address) == ("rfc822", recipient) if recipient.isascii() else kind == "utf-8"
        assert block["Action"] == report.action
        assert block["Status"].startswith("5." if report.action == "failed" and not report.expired else "4.")
        assert block["Last-Attempt-Date"]
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
    elif not message.isascii():
        assert b"Content-Transfer-Encoding: 8bit" in data


def test_an_expired_report_says_so_in_its_status() -> None:
    """RFC 3463 X.4.7: time ran out, whatever was answered last."""
    _, _, blocks, _ = parts_of(compose(failed(delivery(), BUSY, expired=True), MESSAGE))
    assert blocks[1]["Status"] == "4.4.7"
    assert blocks[1]["Diagnostic-Code"] == "smtp; 451 4.7.1 Greylisted, come back later"


def test_a_non_ascii_recipient_is_written_in_ascii() -> None:
    r"""RFC 6533 3: `\x{F6}` for an umlaut, and for the three characters that would make it ambiguous."""
    _, _, blocks, _ = parts_of(compose(*CASES["non-ascii-recipient"]))
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
    assert report.reply.mta is None
    data = compose(report, message)
    assert report.reply.text.encode() not in data
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
    reason = data.partition(b"Reason:\r\n")[2].partition(b"\r\n\r\n")[0].strip()
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
    replies | st.builds(Reply, code=st.integers(0, 999), text=hostile_text, mta=domains),
    st.binary(max_size=300),
)
@example(CASES["failed"][0].delivery, UNKNOWN_USER, b"")
@example(
    CASES["failed"][0].delivery, UNKNOWN_USER, b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n--x--\r\n"
)
@example(
    CASES["failed"][0].delivery,
    UNKNOWN_USER,
    b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n=",
)
def test_a_report_can_be_written_about_anything(one: Delivery, reply: Reply, message: bytes) -> None:
    """An exception here would keep a message coming back for ever, and its sender would never hear of it."""
    if not one.envelope.mail_from:
        one = delivery(*one.envelope.rcpt_to)
    for report in (failed(one, reply), failed(one, reply, expired=True), delayed(one, reply)):
        data = compose(report, message)
        assert b"\n" not in data.replace(b"\r\n", b"")
        root, _, blocks, _ = parts_of(data.replace(message, b"") if len(message) > 40 else data)
        assert len(root.keys()) == 8
        assert len(blocks) == 1 + len(one.envelope.rcpt_to)


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
    """By default and with RET=HDRS; and of a late message always, whatever RET says (RFC 3461 4.3)."""
    for name in ("failed", "ret-full-delayed", "expired"):
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
    message = b"Subject: x\r\n\r\n" + b"y" * MAX_RETURNED
    assert len(compose(failed(delivery(full=True), UNKNOWN_USER), message)) < 4_096
    message = b"X: y\r\n" * MAX_RETURNED + b"\r\n"
    assert len(compose(failed(delivery(full=True), UNKNOWN_USER), message)) < MAX_RETURNED + 4_096


def test_a_report_is_the_same_every_time() -> None:
    """It depends on nothing but its arguments."""
    for report, message in CASES.values():
        assert compose(report, message) == compose(report, message)
