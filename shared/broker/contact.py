"""Why RabbitMQ cannot be used, in words for an operator."""

from urllib.parse import unquote, urlsplit

from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from pamqp.commands import Connection

CHECK = "check PUSHPUSH_AMQP_URL"
_REFUSED = (403, 530)  # AMQP 0-9-1: access-refused, not-allowed


def why(error: BaseException, url: str) -> tuple[str, bool]:
    """Return in words what is wrong, and whether RabbitMQ is there and does not let us in.

    Args:
        error: What connecting, or declaring the queues, raised.
        url: `amqp://USER:PASSWORD@HOST:PORT/VHOST`; its password is told to nobody.
    """
    user = unquote(urlsplit(url).username or "guest")
    match error:
        case ProbableAuthenticationError() | AuthenticationError():
            return f"RabbitMQ refuses user {user} or the password: {CHECK}", True
        case ChannelAccessRefused():
            return f"RabbitMQ does not give user {user} the rights on our queues: {_words(error)}; {CHECK}", True
        case ConnectionClosed(args=(int(code), *_)) if code in _REFUSED:
            return f"RabbitMQ refuses the vhost, or user {user} on it: {_words(error)}; {CHECK}", True
        case InvalidFrameError() if (close := _unexpected(error)) is not None and close.reply_code in _REFUSED:
            return f"RabbitMQ refuses the vhost, or user {user} on it: {close.reply_text}; {CHECK}", True
        case ChannelPreconditionFailed():
            return (
                f"RabbitMQ has a queue or exchange of ours with other arguments: {_words(error)}; empty it and delete "
                "it, and it is made anew"
            ), False
        case _:
            return f"RabbitMQ is away: cannot connect: {error!r}", False


def _unexpected(error: BaseException) -> Connection.Close | None:
    """Return the broker's no to the vhost: aiormq takes it for a broken frame, and tells nothing of what is in it."""
    trace = error.__traceback__
    while trace is not None:
        if isinstance(frame := trace.tb_frame.f_locals.get("frame"), Connection.Close):
            return frame
        trace = trace.tb_next
    return None


def _words(error: Exception) -> str:
    return next((each for each in reversed(error.args) if isinstance(each, str)), repr(error))
