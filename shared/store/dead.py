"""Dead letters: what no room could read, and what the broker handed out too often, kept until an operator decides.

They wait in the queue `mail.undecodable` until somebody looks, and are moved here then: to look into a queue counts as
a delivery, and RabbitMQ 4 drops what was delivered too often (docs/adr/0018-dead-letters-in-the-store.md).
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec
from psycopg.rows import class_row

from shared.store.pool import Connection, Pool

_MOVING = 120.0  # seconds for a batch of letters, which are as large as RabbitMQ takes
_DECIMAL, _TIME = 1, 2
_DEEPEST = 100  # levels of a header; whoever shows it has a stack of its own already
_LONGEST = 2_000  # characters of a reason that lists show; the whole one stays among the headers


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter as it came.

    Attributes:
        headers: AMQP headers, all of them.
        data: The bytes.
        reason: Why it is dead.
        queue: Where it could not be read; "" when that is not known.
        message_id: The queue id, or what its sender wrote there; "" without one.
        content_type: The AMQP property.
        redelivered: The broker has handed it out before.
    """

    headers: Mapping[str, object]
    data: bytes
    reason: str
    queue: str = ""
    message_id: str = ""
    content_type: str | None = None
    redelivered: bool = False


class Dead(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter in a list; `Stored` has it whole."""

    id: int
    taken_at: datetime
    reason: str
    queue: str
    message_id: str
    content_type: str | None
    size: int


class Stored(Dead, frozen=True, kw_only=True):
    """A dead letter, whole.

    Attributes:
        headers: AMQP headers, as they came.
        data: The bytes, as they came.
    """

    headers: dict[str, Any]
    data: bytes


Give = Callable[[Stored, Connection], Awaitable[None]]


class DeadLetters:
    """The table `dead_letters`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def keep(self, letters: Sequence[Letter]) -> int:
        """Keep letters; when this returns they are committed. Returns how many were not there already.

        One that the broker hands out again was perhaps kept before, and its acknowledgement lost: then its digest is
        here. One that is sent twice is two letters.

        Raises:
            StoreUnavailable: They may or may not be kept.
        """
        kept = 0
        async with self._pool.transaction(patience=_MOVING) as connection:
            # One look at a time: another one that died may be committing the same letters still.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('dead letters'))")
            for letter in letters:
                added = await connection.execute(
                    """
                    INSERT INTO dead_letters
                        (reason, queue, message_id, content_type, headers, size, digest, data)
                    SELECT %(reason)s, %(queue)s, %(message_id)s, %(content_type)s, %(headers)b, %(size)s, %(digest)b,
                        %(data)b
                    WHERE NOT (%(redelivered)s AND EXISTS (SELECT FROM dead_letters WHERE digest = %(digest)b))
                    """,
                    _row(letter),
                )
                kept += added.rowcount
        return kept

    async def page(self, *, after: int | None = None, limit: int = 100, search: str = "") -> list[Dead]:
        """Return letters, the latest first.

        Args:
            after: The id of the last one of the page before; None for the first page.
            limit: The most letters.
            search: A part of reason, message id or queue; upper and lower case are the same.
        """
        async with self._pool.statement() as connection, connection.cursor(row_factory=class_row(Dead)) as cursor:
            await cursor.execute(
                f"SELECT {_COLUMNS} FROM dead_letters WHERE {_FOUND} AND (%(after)s::bigint IS NULL OR id < %(after)s) "  # noqa: S608 - constants
                "ORDER BY id DESC LIMIT %(limit)s",
                {"search": search, "after": after, "limit": limit},
            )
            return await cursor.fetchall()

    async def count(self, *, search: str = "") -> int:
        """Return how many letters are kept."""
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                f"SELECT count(*) FROM dead_letters WHERE {_FOUND}",  # noqa: S608 - constants
                {"search": search},
            )
            row = await cursor.fetchone()
        return row[0] if row else 0

    async def get(self, id: int) -> Stored | None:  # noqa: A002 - the column's name
        """Return one letter whole, or None when there is none of this id."""
        async with self._pool.transaction(patience=_MOVING) as connection, connection.cursor() as cursor:
            await cursor.execute(f"{_WHOLE} WHERE id = %s", (id,), binary=True)
            row = await cursor.fetchone()
        return None if row is None else _stored(row)

    async def known(self, ids: Sequence[int]) -> list[int]:
        """Return those of the ids that letters have."""
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                "SELECT id FROM dead_letters WHERE id = ANY(%s) ORDER BY id", (list(ids),)
            )
            return [number for (number,) in await cursor.fetchall()]

    async def hand_over(self, id: int, give: Give) -> bool:  # noqa: A002
        """Give one letter away and forget it; return whether there was one that nobody else was giving away.

        It is given, and only then committed: a crash between the two gives it again. When `give` raises, it is kept.

        Args:
            id: Of the letter.
            give: Must return only when the letter is safe elsewhere. It may write on the connection what is to be
                committed with that.

        Raises:
            StoreUnavailable: It was given, perhaps, and may still be here.
        """
        async with self._pool.transaction(patience=None) as connection, connection.cursor() as cursor:
            await cursor.execute(f"{_WHOLE} WHERE id = %s FOR UPDATE SKIP LOCKED", (id,), binary=True)
            row = await cursor.fetchone()
            if row is None:
                return False
            await give(_stored(row), connection)
            await cursor.execute("DELETE FROM dead_letters WHERE id = %s", (id,))
            return True

    async def delete(
        self, ids: Sequence[int], *, also: Callable[[list[int], Connection], Awaitable[None]] | None = None
    ) -> list[int]:
        """Forget letters for good; return the ids of those that were there. One being given away is passed over.

        Args:
            ids: Of the letters.
            also: Writes what is to be committed with that, unless there was none.

        Raises:
            StoreUnavailable: They may or may not be there.
        """
        async with self._pool.transaction() as connection:
            cursor = await connection.execute(
                "DELETE FROM dead_letters WHERE id = ANY(ARRAY("
                "SELECT id FROM dead_letters WHERE id = ANY(%s) FOR UPDATE SKIP LOCKED)) RETURNING id",
                (list(ids),),
            )
            gone = sorted(number for (number,) in await cursor.fetchall())
            if gone and also is not None:
                await also(gone, connection)
        return gone


_COLUMNS: Final = ", ".join(Dead.__struct_fields__)
_WHOLE: Final = f"SELECT {_COLUMNS}, headers, data FROM dead_letters"  # noqa: S608 - constants
_FOUND: Final = "position(lower(%(search)s) IN lower(reason || ' ' || message_id || ' ' || queue)) > 0"
_encode = msgspec.msgpack.Encoder(order="sorted").encode


def _row(letter: Letter) -> dict[str, object]:
    headers = _encode({name: _kept(value) for name, value in letter.headers.items()})
    about = _encode([headers, letter.message_id, letter.content_type])
    return {
        "reason": _text(letter.reason)[:_LONGEST],
        "queue": _text(letter.queue),
        "message_id": _text(letter.message_id),
        "content_type": None if letter.content_type is None else _text(letter.content_type),
        "headers": headers,
        "size": len(letter.data),
        "digest": hashlib.sha256(len(about).to_bytes(8) + about + letter.data).digest(),
        "data": bytes(letter.data),
        "redelivered": letter.redelivered,
    }


def _text(text: str) -> str:
    """Return the text without what PostgreSQL cannot hold."""
    return text.replace("\x00", "?").encode("utf-8", "replace").decode()


def _stored(row: Sequence[Any]) -> Stored:
    *columns, headers, data = row
    known = dict(zip(Dead.__struct_fields__, columns, strict=True))
    return Stored(headers=_unpacked(msgspec.msgpack.decode(headers)), data=bytes(data), **known)


def _kept(value: object) -> object:
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


def _unpacked(value: Any) -> Any:
    match value:
        case dict():
            return {name: _unpacked(each) for name, each in value.items()}
        case list():
            return [_unpacked(each) for each in value]
        case msgspec.msgpack.Ext(code=code, data=data) if code == _DECIMAL:
            return Decimal(bytes(data).decode())
        case msgspec.msgpack.Ext(data=data):
            return datetime.fromisoformat(bytes(data).decode())
        case _:
            return value
