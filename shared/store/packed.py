"""What strangers wrote, as it is kept: AMQP headers in msgpack, exactly, whatever their values are, and text."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

_DECIMAL, _TIME = 1, 2
_DEEPEST = 100  # levels of a header; whoever shows it has a stack of its own already


def kept(value: object) -> object:
    """Return a header as it is kept; one that nobody could write on purpose keeps nothing else from being kept."""
    try:
        return _packed(value, _DEEPEST)
    except RecursionError:
        return "nested too deeply to be kept"


def _packed(value: object, levels: int) -> object:
    """Return an AMQP value in a form that msgpack gives back exactly: it has no decimals, and text of a time."""
    if levels == 0:
        raise RecursionError
    match value:
        case Mapping():
            return {name: _packed(each, levels - 1) for name, each in value.items()}
        case list() | tuple():
            return [_packed(each, levels - 1) for each in value]
        case bytearray() | memoryview():
            return bytes(value)
        case Decimal():
            return msgspec.msgpack.Ext(_DECIMAL, str(value).encode())
        case datetime():
            return msgspec.msgpack.Ext(_TIME, value.isoformat().encode())
        case _:
            return value


def unpacked(value: Any) -> Any:
    """Return a header as it came."""
    match value:
        case dict():
            return {name: unpacked(each) for name, each in value.items()}
        case list():
            return [unpacked(each) for each in value]
        case msgspec.msgpack.Ext(code=code, data=data) if code == _DECIMAL:
            return Decimal(bytes(data).decode())
        case msgspec.msgpack.Ext(data=data):
            return datetime.fromisoformat(bytes(data).decode())
        case _:
            return value


def storable(text: str) -> str:
    """Return the text without what PostgreSQL cannot hold."""
    return text.replace("\x00", "?").encode("utf-8", "replace").decode()
