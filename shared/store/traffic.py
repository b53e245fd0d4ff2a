"""How much mail went where: by domain and hour for as long as counters are kept, by the minute for the last two days.

What is counted are recipients: a message for three people at one domain counts three times.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

import msgspec
from psycopg.rows import class_row

from shared.store.pool import Pool
from shared.store.traces import storable

Order = Literal["delivered", "deferred", "bounced"]

_KINDS: Final = ("delivered", "deferred", "postponed", "fallback", "failed", "bounced", "dropped", "removed")
# The router and an operator end mail without asking anybody.
_ATTEMPTS = """
    coalesce(sum(delivered + deferred + fallback + bounced + dropped)
        FILTER (WHERE transport NOT IN ('router', 'operator')), 0)::bigint AS attempts
"""
_SUMS = ", ".join((*(f"coalesce(sum({each}), 0)::bigint AS {each}" for each in (*_KINDS, "bytes", "ms")), _ATTEMPTS))
# `bounced` asks for what was given up: for mail without a sender that is `dropped`.
_ORDERS: Final[Mapping[Order, str]] = {
    "delivered": "sum(delivered)",
    "deferred": "sum(deferred)",
    "bounced": "sum(bounced + dropped + failed)",
}
_WITHIN = "hour >= %(since)s AND hour < coalesce(%(until)s::timestamptz, 'infinity')"


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Recipients, by what became of an attempt.

    Attributes:
        delivered: A next hop took it.
        deferred: It is tried again later.
        postponed: It was not tried, for want of room.
        fallback: The other transport, or the next target, had its turn.
        failed: It could not be settled, and was set aside.
        bounced: Given up, and the sender was told.
        dropped: Given up, and nobody was told.
        removed: Taken out by an operator, and nobody was told.
        bytes: Delivered.
        ms: That all attempts took together.
        attempts: How often a next hop was asked.
    """

    delivered: int = 0
    deferred: int = 0
    postponed: int = 0
    fallback: int = 0
    failed: int = 0
    bounced: int = 0
    dropped: int = 0
    removed: int = 0
    bytes: int = 0
    ms: int = 0
    attempts: int = 0


class DomainTraffic(Counts, frozen=True, kw_only=True):
    """What went to one domain, by all transports."""

    domain: str


class TransportTraffic(Counts, frozen=True, kw_only=True):
    """What went to one domain by one transport (`https`, `smtp`), or was ended by the `router` or an `operator`."""

    transport: str


class HourTraffic(Counts, frozen=True, kw_only=True):
    """What went out in one hour, which begins then."""

    hour: datetime


class MinuteTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one minute, which begins then; `routed` are recipients of new messages."""

    minute: datetime
    routed: int = 0
    delivered: int = 0
    deferred: int = 0
    postponed: int = 0
    fallback: int = 0
    failed: int = 0
    bounced: int = 0
    dropped: int = 0
    removed: int = 0


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in the last seconds, by `shared.mail.event.Kind`; kinds without any are not in it."""

    seconds: float
    counts: dict[str, int]


class Traffic:
    """The tables `traffic`, `traffic_hours` and `event_minutes`, and the newest of `events`, for whoever reads them."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def by_domain(
        self,
        *,
        since: datetime,
        until: datetime | None = None,
        limit: int = 100,
        order: Order = "delivered",
        search: str | None = None,
    ) -> list[DomainTraffic]:
        """Return what went to each domain, the most first.

        Args:
            since: From the beginning of this hour on.
            until: Up to the hour that begins then.
            limit: The most domains.
            order: Of what the most; `bounced` is whatever was given up.
            search: Only domains with this in their name.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        if search is not None and not storable(search):
            return []
        rows = await self._all(
            DomainTraffic,
            f"SELECT domain, {_SUMS} FROM traffic WHERE {_WITHIN} "  # noqa: S608 - constants
            "AND (%(search)s::text IS NULL OR strpos(domain, lower(%(search)s)) > 0) "
            f"GROUP BY domain ORDER BY {_ORDERS[order]} DESC, domain LIMIT %(limit)s",
            {"since": _hour(since), "until": until, "search": search, "limit": limit},
        )
        return cast("list[DomainTraffic]", rows)

    async def of_domain(self, domain: str, since: datetime, until: datetime | None = None) -> list[TransportTraffic]:
        """Return what went to one domain, by transport.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        rows = await self._all(
            TransportTraffic,
            f"SELECT transport, {_SUMS} FROM traffic WHERE domain = %(domain)s AND {_WITHIN} "  # noqa: S608
            "GROUP BY transport ORDER BY transport",
            {"domain": domain, "since": _hour(since), "until": until},
        )
        return cast("list[TransportTraffic]", rows)

    async def by_hour(
        self, *, since: datetime, until: datetime | None = None, domain: str | None = None
    ) -> list[HourTraffic]:
        """Return what went out in each hour, those without any mail too, the oldest first.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        # All domains of a day are millions of rows, which the journal adds up as it counts.
        counters = "traffic_hours" if domain is None else "traffic"
        of = "" if domain is None else "AND domain = %(domain)s"
        rows = await self._all(
            HourTraffic,
            f"""
            SELECT h AS hour, {_SUMS}
            FROM generate_series(
                %(since)s, coalesce(%(until)s::timestamptz - interval '1 microsecond', now()), interval '1 hour'
            ) AS h
            LEFT JOIN {counters} ON hour = h AND {_WITHIN} {of}
            GROUP BY h ORDER BY h
            """,  # noqa: S608
            {"since": _hour(since), "until": until, "domain": domain},
        )
        return [msgspec.structs.replace(each, hour=each.hour.astimezone(UTC)) for each in rows]

    async def by_minute(self, *, minutes: int = 60) -> list[MinuteTraffic]:
        """Return what happened in each of the last minutes, the current one too, the oldest first.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        kinds = ", ".join(
            f"coalesce(sum(events) FILTER (WHERE kind = '{each}'), 0)::bigint AS {each}" for each in ("routed", *_KINDS)
        )
        rows = await self._all(
            MinuteTraffic,
            f"""
            WITH span AS (SELECT date_trunc('minute', now()) AS last)
            SELECT m AS minute, {kinds}
            FROM span, generate_series(last - make_interval(mins => %(back)s), last, interval '1 minute') AS m
            LEFT JOIN event_minutes ON minute = m GROUP BY m ORDER BY m
            """,  # noqa: S608
            {"back": minutes - 1},
        )
        return [msgspec.structs.replace(each, minute=each.minute.astimezone(UTC)) for each in rows]

    async def rates(self, seconds: float = 60) -> Rates:
        """Return what happened lately.

        Raises:
            StoreUnavailable: The store cannot be asked.
        """
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                "SELECT kind, count(*) FROM events "
                "WHERE at > now() - make_interval(secs => %s) AND at <= now() GROUP BY kind",
                (seconds,),
            )
            return Rates(seconds=seconds, counts=dict(await cursor.fetchall()))

    async def _all(self, row: type[Any], query: str, values: dict[str, object]) -> list[Any]:
        async with self._pool.statement() as connection, connection.cursor(row_factory=class_row(row)) as cursor:
            await cursor.execute(query, values)
            return await cursor.fetchall()


def _hour(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
