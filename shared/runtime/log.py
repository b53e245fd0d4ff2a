"""One line per event on standard error: JSON for machines, text for people."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import msgspec
import structlog
from structlog.typing import Processor

_QUIET = ("aiormq", "aio_pika", "pika", "dramatiq", "aiosmtplib", "httpx", "httpcore", "psycopg.pool", "asyncio")


def _json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def _as_json() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]


def _as_text() -> list[Processor]:
    # The pretty tracebacks show local variables, which have secrets and mail in them, and take seconds to draw.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def set_up(*, form: Literal["json", "text"], level: str, room: str) -> None:
    """Configure structlog and the standard library's logging to write the same lines.

    Args:
        form: `json` or `text`.
        level: The least level written: debug, info, warning or error.
        room: The name of the room, on every line.
    """

    def named(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # Not by a context variable: jobs come from threads that have none.
        return {**event, "room": room}

    shared: list[Processor] = [
        named,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering = _as_json() if form == "json" else _as_text()
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in _QUIET:
        # Their news on a lost connection is told by the room itself, once and in words.
        logging.getLogger(name).setLevel(logging.CRITICAL if level != "debug" else logging.DEBUG)
