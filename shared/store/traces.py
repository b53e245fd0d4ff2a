"""What became of one message, and which messages there were: the journal, for whoever reads it.

Events travel beside the mail, and some may be lost, so a message is found by any event of it that matches, and what is
not known is left empty. Addresses are searched as the privacy setting keeps them: under `domain` by their domain, under
`hash` by the hash of the whole.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from psycopg.rows import class_row

from shared.mail.event import Event, Kind
from shared.mail.privacy import Privacy
from shared.mail.standing import CLOCKS, ENDS, FINAL
from shared.store.pool import Connection, Pool

SHOWN: Final = 5  # recipients named in a list
_CHUNK, _MOST = 200, 5_000  # rows read at once when messages are looked for: more and more of them
_FIELDS = ", ".join("message_id AS id" if each == "id" else each for each in Event.__struct_fields__)
_TOLD, _BEGUN = 5_000, 200  # events that a message is told by in a list: the newest, and the first
# Of what happened at the same time: the order in which it can have happened.
_ORDER = "at, array_position(ARRAY['routed', 'rerouted'], kind) NULLS LAST, kind = 'reported', attempt, recipient"
_REVERSED = "at DESC, coalesce(array_position(ARRAY['rerouted', 'routed'], kind), 0), kind <> 'reported', attempt DESC"
# What happened last to a recipient, by the same rules as in `shared.mail.standing`, since clocks differ.
_LAST = f"""
    kind = 'routed', over AND kind = 'rerouted',
    CASE WHEN kind = ANY(%(ends)s) THEN at + %(clocks)s ELSE at END DESC, {_REVERSED}
"""
_MATCHES = """
    (message_id = %(word)s OR header_id = ANY(%(ids)s) OR recipient = ANY(%(addresses)s) OR sender = ANY(%(addresses)s))
"""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One message, in a list.

    Attributes:
        id: Its queue id.
        at: The newest event that matches what was asked for; the last one's of a list is `before` for the next.
        accepted_at: When the fleet took it; None when that is no longer, or not, known.
        sender: The reverse-path; "" is the null one, None when it is not known.
        recipients: The first of them, as they are kept.
        recipient_count: How many there are; those that are kept alike count once. Of very many events the newest tell.
        size: Bytes; 0 when it is not known.
        header_id: The Message-ID field; None when it is not known.
        last_kind: The newest event of the message.
        last_at: When that was.
        states: How many recipients are in which state, by the last event of each that is no report; of those that are
            kept alike every end counts.
    """

    id: str
    at: datetime
    accepted_at: datetime | None
    sender: str | None
    recipients: list[str]
    recipient_count: int
    size: int
    header_id: str | None
    last_kind: Kind
    last_at: datetime
    states: dict[str, int]


class Awaited(msgspec.Struct, frozen=True, kw_only=True):
    """What waits of a message for its next attempt."""

    recipients: list[str]
    domain: str
    target: str
    attempts: int
    next_attempt_at: datetime
    reply: str


class Traces:
    """The table `events`."""

    def __init__(self, pool: Pool, privacy: Privacy) -> None:
        """Use a pool, and the setting under which addresses were written down."""
        self._pool = pool
        self._privacy = privacy

    async def find(self, word: str, *, limit: int = 50, before: datetime | None = None) -> list[Found]:
        """Return the messages that a word names, those with the newest events first.

        Args:
            word: A queue id, a Message-ID with or without its brackets, or the address of a recipient or sender.
            limit: The most messages; a few more when the last ones have the same time.
            before: Only those whose newest matching event is older.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        word = word.strip()
        if not word or not storable(word):
            return []
        bare = word.removeprefix("<").removesuffix(">")
        values = {
            "word": word,
            "ids": [bare, f"<{bare}>"],
            # As it is, too: a hash is pasted from a list, and records of an earlier setting may have it whole.
            "addresses": sorted({self._privacy.address(bare), Privacy().address(bare), bare}) if "@" in bare else [],
        }
        conditions = [("header_id", each) for each in values["ids"]]
        conditions += [(name, each) for name in ("recipient", "sender") for each in values["addresses"]]
        async with self._pool.transaction() as connection:
            newest = await _itself(connection, word, before=before)
            for column, value in conditions:
                some = await _newest(connection, column, value, asked=values, limit=limit, before=before)
                newest |= {each: max(at, newest.get(each, at)) for each, at in some.items()}
            return await _described(connection, _first(newest, limit))

    async def recent(self, *, limit: int = 50, before: datetime | None = None) -> list[Found]:
        """Return the messages with the newest events; arguments as for `find`.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        async with self._pool.transaction() as connection:
            newest = await _newest(connection, None, "", asked={}, limit=limit, before=before)
            return await _described(connection, _first(newest, limit))

    async def timeline(self, id: str, *, limit: int = 5000) -> list[Event]:  # noqa: A002 - the field's name
        """Return what happened to a message, the oldest first; of very much the newest.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        if not storable(id):
            return []
        rows = await self._all(
            Event,
            f"SELECT * FROM (SELECT {_FIELDS} FROM events WHERE message_id = %(id)s "  # noqa: S608 - constants
            f"ORDER BY {_REVERSED} LIMIT %(limit)s) AS newest ORDER BY {_ORDER}",
            {"id": id, "limit": limit},
        )
        return [_in_utc(each) for each in rows]

    async def waiting(self, id: str) -> list[Awaited]:  # noqa: A002
        """Return what waits of a message for its next attempt, due first; addresses as the journal keeps them.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        if not storable(id):
            return []
        rows = await self._all(
            Awaited,
            "SELECT rcpt_to AS recipients, domain, target, attempts, next_attempt_at, reply FROM deferred "
            "WHERE message_id = %(id)s ORDER BY next_attempt_at, deferred.id",
            {"id": id},
        )
        return [
            msgspec.structs.replace(
                each,
                recipients=[self._privacy.address(recipient) for recipient in each.recipients],
                reply=self._privacy.text(each.reply, *each.recipients),
                next_attempt_at=each.next_attempt_at.astimezone(UTC),
            )
            for each in rows
        ]

    async def _all(self, row: type[Any], query: str, values: Mapping[str, object]) -> list[Any]:
        async with self._pool.statement() as connection, connection.cursor(row_factory=class_row(row)) as cursor:
            await cursor.execute(query, values)
            return await cursor.fetchall()


async def _itself(connection: Connection, id_: str, *, before: datetime | None) -> dict[str, datetime]:
    """Return the message of an id, all of whose events match, with the time of the newest."""
    cursor = await connection.execute("SELECT at FROM events WHERE message_id = %s ORDER BY at DESC LIMIT 1", (id_,))
    row = await cursor.fetchone()
    return {id_: row[0]} if row is not None and (before is None or row[0] < before) else {}


async def _newest(
    connection: Connection,
    column: str | None,
    value: str,
    *,
    asked: Mapping[str, object],
    limit: int,
    before: datetime | None,
) -> dict[str, datetime]:
    """Return the messages with the newest events in which a column has a value, with the times of those.

    Read in the order of the index, and no more of it than is needed: the domain of a large provider has millions.
    """
    condition = "true" if column is None else f"{column} = %(value)s"
    condition += "" if before is None else " AND at < %(before)s"
    values = {**asked, "value": value, "before": before}
    found: dict[str, datetime] = {}
    earlier: set[str] = set()
    size, oldest = _CHUNK, None
    # Few rows are wanted: never to be made by sorting all.
    await connection.execute("SET LOCAL cursor_tuple_fraction = 0.0001")
    async with connection.cursor("newest") as cursor:
        await cursor.execute(
            f"SELECT message_id, at FROM events WHERE {condition} ORDER BY at DESC",  # noqa: S608 - constants
            values,
        )
        while rows := await cursor.fetchmany(size):
            if before is not None:
                fresh = {id_ for id_, _ in rows} - found.keys() - earlier
                earlier |= await _earlier(connection, fresh, values, everything=column is None)
            for id_, at in rows:
                if oldest is not None and len(found) >= limit and at < oldest:
                    return found
                if id_ not in found and id_ not in earlier:
                    found[id_] = oldest = at
            size = min(2 * size, _MOST)
    return found


async def _earlier(
    connection: Connection, ids: Collection[str], values: Mapping[str, object], *, everything: bool
) -> set[str]:
    """Return which messages were on an earlier page: those that have a newer match."""
    matches = "true" if everything else _MATCHES
    cursor = await connection.execute(
        "SELECT id FROM unnest(%(some)s::text[]) AS id WHERE EXISTS "  # noqa: S608 - constants
        f"(SELECT FROM events WHERE message_id = id AND at >= %(before)s AND {matches})",
        {**values, "some": list(ids)},
    )
    return {row[0] for row in await cursor.fetchall()}


def _first(newest: Mapping[str, datetime], limit: int) -> dict[str, datetime]:
    """Return the newest so many; those of the same time stay together, since a page begins below a time."""
    times = sorted(newest.values(), reverse=True)
    if len(times) <= limit:
        return dict(newest)
    return {id_: at for id_, at in newest.items() if at >= times[limit - 1]}


_DESCRIBED = f"""
    WITH mine AS (
        SELECT e.* FROM unnest(%(ids)s::text[]) AS id, LATERAL (
            SELECT * FROM events WHERE message_id = id ORDER BY at DESC LIMIT {_TOLD}
        ) AS e
    ), begun AS (
        SELECT message_id, min(accepted_at) AS accepted_at, min(sender) AS sender, min(header_id) AS header_id,
            max(size) AS size
        FROM unnest(%(ids)s::text[]) AS id, LATERAL (
            SELECT * FROM events WHERE message_id = id ORDER BY at LIMIT {_BEGUN}
        ) AS e GROUP BY message_id
    ), steps AS (
        SELECT *, bool_or(kind = ANY(%(final)s)) OVER (PARTITION BY message_id, recipient) AS over
        FROM mine WHERE kind <> 'reported'
    ), placed AS (
        SELECT *, row_number() OVER (PARTITION BY message_id, recipient ORDER BY {_LAST}) AS place FROM steps
    ), counted AS (
        SELECT message_id, jsonb_object_agg(kind, n) AS states FROM (
            SELECT message_id, kind, count(*) AS n FROM placed
            WHERE place = 1 OR recipient LIKE '@%%' AND kind = ANY(%(ends)s) GROUP BY 1, 2
        ) AS kinds GROUP BY 1
    )
    SELECT message_id AS id, max(at) AS at, min(begun.accepted_at) AS accepted_at, min(begun.sender) AS sender,
        (array_agg(DISTINCT recipient))[1:{SHOWN}] AS recipients, count(DISTINCT recipient) AS recipient_count,
        max(begun.size) AS size, min(begun.header_id) AS header_id,
        (array_agg(kind ORDER BY kind = 'routed', {_REVERSED}))[1] AS last_kind, max(at) AS last_at,
        coalesce((array_agg(states))[1], '{{}}') AS states
    FROM mine JOIN begun USING (message_id) LEFT JOIN counted USING (message_id) GROUP BY message_id
"""  # noqa: S608 - constants


async def _described(connection: Connection, newest: Mapping[str, datetime]) -> list[Found]:
    async with connection.cursor(row_factory=class_row(Found)) as cursor:
        values = {"ids": list(newest), "final": sorted(FINAL), "ends": sorted(ENDS), "clocks": CLOCKS}
        await cursor.execute(_DESCRIBED, values)
        found = [
            msgspec.structs.replace(
                each,
                at=newest[each.id].astimezone(UTC),
                accepted_at=None if each.accepted_at is None else each.accepted_at.astimezone(UTC),
                last_at=each.last_at.astimezone(UTC),
            )
            for each in await cursor.fetchall()
        ]
    return sorted(found, key=lambda each: (each.at, each.id), reverse=True)


def _in_utc(event: Event) -> Event:
    times = {name: getattr(event, name) for name in ("at", "until", "accepted_at")}
    return msgspec.structs.replace(
        event, **{name: time.astimezone(UTC) for name, time in times.items() if time is not None}
    )


def storable(text: str) -> bool:
    """Say whether PostgreSQL can hold a text, and so whether it may be in the journal."""
    return "\x00" not in text and not any("\ud800" <= each <= "\udfff" for each in text)
