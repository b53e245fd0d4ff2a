"""What a report tells a person who knows nothing of mail servers: what happened, and what she can do (RFC 3463).

The words are chosen by the enhanced code, never by the text of a reply: peers write that as they like. They name no
internal host, rule or setting, for strangers read them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from shared.mail.reply import Reply

_MAILBOX = (
    "Check the address for typing errors, and send the message again to the right one. If it is right, it may no "
    "longer be in use: ask the recipient for another address."
)
_DOMAIN = (
    "Check the part of the address after the @ for typing errors, and send the message again. If it is right, ask the "
    "recipient in another way for another address."
)
_OTHER_ADDRESS = "Ask the recipient in another way for another address: this one cannot receive mail."
_SENDER = (
    "The recipient's mail server objects to your own address, not to the recipient's. Show this report to those who "
    "run your mail service."
)
_FULL = "Send the message again in a few days, or tell the recipient in another way that the mailbox is full."
_LARGE = (
    "Send a smaller message: leave out attachments, or put large files where the recipient can download them, and send "
    "a link."
)
_FULL_OR_LARGE = (
    "The message may be too large, or the recipient's mailbox full. Send it again without attachments, or in a few "
    "days, or tell the recipient in another way."
)
_FEWER = "Send the message to fewer recipients at a time."
_LOOP = (
    "Nothing is wrong with your message: mail servers hand it to each other without end. Tell the recipient in another "
    "way, so that those who run the recipient's mail service can mend it."
)
_LATER = (
    "Send the message again later. If that fails too, check the part of the address after the @, and try to reach the "
    "recipient in another way."
)
_UTF8 = (
    "The recipient's mail server takes only addresses in plain letters from A to Z. Use such an address: ask the "
    "recipient for one, or send from one, if it is yours that has other letters."
)
_POLICY = (
    "The recipient's mail server did not take the message because of its rules, often those against spam. Its words "
    "above may say more. Ask the recipient in another way to let your mail in, or show this report to those who run "
    "your mail service."
)
_ENCRYPTION = (
    "The two mail servers could not agree on a secure connection, and you cannot change that. Show this report to "
    "those who run your mail service, and reach the recipient in another way."
)
_ROUTING = (
    "Check the address, above all the part after the @. If it is right, send the message again later, or reach the "
    "recipient in another way."
)
_REFUSED = (
    "Check the address. If it is right, ask the recipient in another way, and mention this report: those who run the "
    "recipient's mail service can say why the message was refused."
)
_NOTHING = "Nothing."
# What there is to do when the sender's own mail service gave the message up, whatever the recipient's had said.
WITHDRAWN: Final = (
    "It will not be tried again. Ask those who run your mail service before you send it once more, or reach the "
    "recipient in another way."
)

# By subject and detail (RFC 3463 3 and the registry of RFC 5248); the class before them changes nothing for a person.
BY_STATUS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "1.0": _MAILBOX,
        "1.1": _MAILBOX,
        "1.2": _DOMAIN,
        "1.3": _MAILBOX,
        "1.6": _MAILBOX,
        "1.7": _SENDER,
        "1.8": _SENDER,
        "1.10": _OTHER_ADDRESS,
        "2.1": _OTHER_ADDRESS,
        "2.2": _FULL,
        "2.3": _LARGE,
        "3.4": _LARGE,
        "4.6": _LOOP,
        "4.7": _LATER,
        "5.3": _FEWER,
        "6.7": _UTF8,
        "7.1": _POLICY,
        "7.4": _ENCRYPTION,
        "7.5": _ENCRYPTION,
        "7.10": _ENCRYPTION,
        "7.11": _ENCRYPTION,
    }
)
# Where the detail says no more than the subject.
BY_SUBJECT: Final[Mapping[str, str]] = MappingProxyType({"4": _ROUTING, "7": _POLICY})
# For peers without an enhanced code (RFC 5321 4.2.3, RFC 7504, the registry of RFC 5248). 552 has two meanings: full,
# and too large (RFC 1870 6.1).
BY_CODE: Final[Mapping[int, str]] = MappingProxyType(
    {
        521: _OTHER_ADDRESS,
        523: _ENCRYPTION,
        551: _MAILBOX,
        552: _FULL_OR_LARGE,
        553: _MAILBOX,
        556: _OTHER_ADDRESS,
    }
)

# What happened when no peer spoke, by subject and detail: our own replies are written for operators.
OWN_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "1.2": "The part of the address after the @ does not exist.",
        "1.10": "The part of the address after the @ belongs to somebody who receives no mail there.",
        "3.0": "Something went wrong in this mail system.",
        "3.2": "This mail system had too much to do.",
        "3.4": "The message is too large.",
        "3.5": "Something went wrong in this mail system.",
        "4.1": "The recipient's mail server did not answer.",
        "4.2": "The connection to the recipient's mail server was lost.",
        "4.3": "The recipient's mail server could not be looked up.",
        "4.4": "The recipient's mail server could not be found.",
        "4.5": "Too much mail was on its way to the recipient's mail server.",
        "4.6": "The message went round in a circle.",
        "5.0": "The recipient's mail server gave an answer that makes no sense.",
        "6.7": "The recipient's mail server takes no addresses with letters beyond A to Z.",
        "7.5": "No connection to the recipient's mail server is secure enough.",
    }
)


def advice(reply: Reply, *, expired: bool) -> str:
    """Return what the sender of a message that failed can do.

    A detail that says what is wrong goes before the end of patience: a mailbox that was full for days is still full.
    Only then does a bare code speak, for it says less.

    Args:
        reply: What was answered last.
        expired: The fleet's patience ended; there was no final refusal.
    """
    subject, _, _ = (detail := _detail(reply)).partition(".")
    known = BY_CODE.get(reply.code) if subject == "0" else BY_STATUS.get(detail)
    if known is not None:
        return known
    if expired:
        return _LATER
    return BY_SUBJECT.get(subject) or {"2": _NOTHING, "5": _REFUSED}.get(reply.status[0], _LATER)


def happened(reply: Reply) -> str:
    """Return what happened when no peer spoke; the words of `reply` are for operators."""
    return OWN_WORDS.get(_detail(reply), "The recipient's mail server could not be reached.")


def _detail(reply: Reply) -> str:
    return reply.status.partition(".")[2]
