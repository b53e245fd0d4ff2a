"""Let one message with unreadable AMQP properties not take the connection with it.

A producer can put bytes that are not UTF-8 into a `message_id` or a header's name, or a time beyond the calendar.
pamqp raises in the frame reader then, the connection ends, the broker hands the same message out again, and every good
message in hand goes round with it. Read this way, such a message has one header, `unreadable`, with the raw bytes of
its properties; it keeps to no contract and is set aside like any other that cannot be read, whole.
"""

import struct
from typing import Final

from pamqp.commands import Basic
from pamqp.header import ContentHeader

UNREADABLE: Final = "unreadable"

_strict = ContentHeader.unmarshal


def _unmarshal(self: ContentHeader, data: bytes) -> None:
    try:
        _strict(self, data)
    except (ValueError, OverflowError, OSError, TypeError, struct.error, RecursionError):
        # The size of the body stands before the properties, so the frames that follow can be read.
        self.properties = Basic.Properties(headers={UNREADABLE: bytearray(data)})


def install() -> None:
    """Read properties this way from now on, in this process."""
    ContentHeader.unmarshal = _unmarshal  # type: ignore[method-assign] # pamqp has no other way
