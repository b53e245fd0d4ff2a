"""Dead letters: what no room could read, and what the broker handed out too often, kept until an operator decides.

They wait in the queue `mail.undecodable` until somebody looks, and are moved here then: to look into a queue counts as
a delivery, and RabbitMQ 4 drops what was delivered too often (docs/adr/0018-dead-letters-in-the-store.md).
"""

import hashlib
import operator
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from psycopg.rows import class_row

from shared.store.packed import kept, storable, unpacked
from shared.store.pool import Connection, Pool

_MOVING = 120.0  # seconds for a batch of letters, which are as large as RabbitMQ takes
_LONGEST = 2_000  # characters of a reason that lists show; the whole one stays among the headers
_USUAL = 262_144  # bytes of a letter, as they usually are at most


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


class Gone(msgspec.Struct, frozen=True):
    """A letter that was thrown away.

    Attributes:
        id: It was.
        wire: The wire form of a delivery, without its body; of anything else empty.
    """

    id: int
    wire: bytes


class Look:
    """One look into the queue.

    Attributes:
        rows: Of the letters that it has kept, or known again, and the broker has perhaps not forgotten yet. What the
            next call is given, it must have forgotten: a get that is answered went behind their acks.
    """

    def __init__(self) -> None:
        """Begin."""
        self.rows: list[int] = []


Give = Callable[[Stored, Connection], Awaitable[None]]


class DeadLetters:
    """The table `dead_letters`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def ready(self) -> None:
        """Make sure that a letter could be kept now: one is written, and taken back.

        A disk that is full, or a store that only reads, answers every question and keeps nothing.

        Raises:
            StoreUnavailable: It could not.
        """
        tried = _row(Letter(headers={}, data=bytes(_USUAL), reason="is there room?"))
        async with self._pool.transaction() as connection:
            # Its number is none that a letter has, and uses up none.
            await connection.execute(_KEEP.format("id, ", "0, ") + " RETURNING id", tried)
            await connection.rollback()

    async def keep(self, letters: Sequence[Letter], look: Look | None = None) -> int:
        """Keep letters; when this returns they are committed. Returns how many were not there already.

        One that the broker hands out again was perhaps kept before, and its acknowledgement lost: then a row has its
        digest, for as long as the broker has perhaps not forgotten the letter. Each row stands for one letter: of two
        that are alike and come again, both are kept unless both were.

        Args:
            letters: As they came.
            look: In which they came.

        Raises:
            StoreUnavailable: They may or may not be kept.
        """
        look = look or Look()
        rows: list[int] = []
        new = 0
        async with self._pool.transaction(patience=_MOVING) as connection:
            await _let_go(connection, look)
            for letter in letters:
                row = _row(letter)
                number = await _known_again(connection, row, but=rows) if letter.redelivered else None
                if number is None:
                    number = await _added(connection, row)
                    new += 1
                rows.append(number)
        look.rows = rows
        return new

    async def end(self, look: Look) -> None:
        """Note that the broker has forgotten the letters of a look: what is like them from now on is new.

        Raises:
            StoreUnavailable: It may or may not be noted; until then a letter that is like one of them, and comes again,
                is taken for it.
        """
        async with self._pool.transaction() as connection:
            await _let_go(connection, look)
        look.rows = []

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
    ) -> list[Gone]:
        """Forget letters for good; return those that were there, in order. One being given away is passed over.

        Args:
            ids: Of the letters.
            also: Writes what is to be committed with that, unless there was none.

        Raises:
            StoreUnavailable: They may or may not be there.
        """
        async with self._pool.transaction() as connection:
            cursor = await connection.execute(_DELETE, (list(ids),), binary=True)
            gone = sorted((Gone(number, bytes(wire)) for number, wire in await cursor.fetchall()), key=_number)
            if gone and also is not None:
                await also([each.id for each in gone], connection)
        return gone


_COLUMNS: Final = ", ".join(Dead.__struct_fields__)
_WHOLE: Final = f"SELECT {_COLUMNS}, headers, data FROM dead_letters"  # noqa: S608 - constants
_FOUND: Final = "position(lower(%(search)s) IN lower(reason || ' ' || message_id || ' ' || queue)) > 0"
_KEEP: Final = """
    INSERT INTO dead_letters ({}reason, queue, message_id, content_type, headers, size, digest, data)
    OVERRIDING SYSTEM VALUE
    VALUES ({}%(reason)s, %(queue)s, %(message_id)s, %(content_type)s, %(headers)b, %(size)s, %(digest)b, %(data)b)
"""
# Version, length of the header, and header, as the codec has them; bodies are not read for it.
_WIRE: Final = """
    CASE WHEN size >= 5 AND substring(data FROM 1 FOR 1) = '\\x01'
    THEN substring(data FROM 1 FOR 5 + least(1048576, (get_byte(data, 1)::bigint << 24) + (get_byte(data, 2) << 16)
        + (get_byte(data, 3) << 8) + get_byte(data, 4))::int)
    ELSE '' END
"""
_DELETE: Final = (
    "DELETE FROM dead_letters WHERE id = ANY(ARRAY("  # noqa: S608 - constants
    f"SELECT id FROM dead_letters WHERE id = ANY(%s) FOR UPDATE SKIP LOCKED)) RETURNING id, {_WIRE}"
)
_number = operator.attrgetter("id")
_encode = msgspec.msgpack.Encoder(order="sorted").encode


async def _known_again(connection: Connection, row: Mapping[str, object], *, but: Sequence[int]) -> int | None:
    """Return a row that may have been made for the same letter, and for no other one."""
    found = await connection.execute(
        "SELECT id FROM dead_letters WHERE digest = %(digest)b AND id <> ALL(%(but)s) ORDER BY id LIMIT 1",
        {"digest": row["digest"], "but": list(but)},
    )
    known = await found.fetchone()
    return None if known is None else int(known[0])


async def _added(connection: Connection, row: Mapping[str, object]) -> int:
    added = await connection.execute(_KEEP.format("", "") + " RETURNING id", row)
    [(number,)] = await added.fetchall()
    return int(number)


async def _let_go(connection: Connection, look: Look) -> None:
    """Wait for the turn, and take their digests off letters that the broker has forgotten."""
    # One look at a time: another one that died may be committing the same letters still.
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('dead letters'))")
    if look.rows:
        await connection.execute("UPDATE dead_letters SET digest = '' WHERE id = ANY(%s)", (look.rows,))


def _row(letter: Letter) -> dict[str, object]:
    headers = _encode({name: kept(value) for name, value in letter.headers.items()})
    about = _encode([headers, letter.message_id, letter.content_type])
    return {
        "reason": storable(letter.reason)[:_LONGEST],
        "queue": storable(letter.queue),
        "message_id": storable(letter.message_id),
        "content_type": None if letter.content_type is None else storable(letter.content_type),
        "headers": headers,
        "size": len(letter.data),
        "digest": hashlib.sha256(len(about).to_bytes(8) + about + letter.data).digest(),
        "data": bytes(letter.data),
    }


def _stored(row: Sequence[Any]) -> Stored:
    *columns, headers, data = row
    known = dict(zip(Dead.__struct_fields__, columns, strict=True))
    return Stored(headers=unpacked(msgspec.msgpack.decode(headers)), data=bytes(data), **known)
