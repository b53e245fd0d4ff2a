"""The audit log: who did what to mail, rules and tokens, with which means, the latest first.

Changes of rules are recorded by the database itself (`dns_override_changes`); the log shows them among the rest, a line
for each version, however many rules it touched.
"""

import re
from datetime import datetime
from typing import Any, Self

import msgspec
from psycopg.rows import dict_row

from shared.store.pool import Connection, Pool

MAX_DETAIL = 4_000  # characters
_BIGGEST = 2**63 - 1  # what the tables hold
_PLACE = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")

_ACTS = """
    SELECT id, at, actor, via, action, object, detail FROM audit WHERE id < %(id)s ORDER BY id DESC LIMIT %(limit)s
"""
# From version to version along the primary key: an import of a hundred thousand rules is one step.
_VERSIONS = """
    WITH RECURSIVE versions AS (
        (SELECT version, 1 AS number FROM dns_override_changes WHERE version < %(version)s
         ORDER BY version DESC LIMIT 1)
        UNION ALL
        SELECT (SELECT c.version FROM dns_override_changes c WHERE c.version < v.version
                ORDER BY c.version DESC LIMIT 1), number + 1
        FROM versions v WHERE v.version IS NOT NULL AND number < %(limit)s
    )
    SELECT first.*, (SELECT count(*) FROM dns_override_changes c WHERE c.version = first.version) AS count
    FROM versions v CROSS JOIN LATERAL (
        SELECT version, at, actor, action, lookup_key, before->>'target_host' AS before, after->>'target_host' AS after
        FROM dns_override_changes c WHERE c.version = v.version ORDER BY lookup_key LIMIT 1
    ) AS first ORDER BY first.version DESC
"""


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the log. What comes after it is below both."""

    id: int = _BIGGEST
    version: int = _BIGGEST

    @property
    def text(self) -> str:
        """It for a link to the next page."""
        return f"{self.id}-{self.version}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `text` wrote.

        Raises:
            ValueError: It is none.
        """
        found = _PLACE.fullmatch(text)
        if found is None or max(map(int, found.groups())) > _BIGGEST:
            raise ValueError("this is no place in the log")
        return cls(id=int(found[1]), version=int(found[2]))


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the audit log.

    Attributes:
        at: When.
        actor: Who.
        via: With what: `cli`, `panel`, `api`; `rules`, for a change of the rules by whichever.
        action: What was done, such as `queue bounce`.
        object: To what.
        detail: More of it, in words.
        key: Of a change of one rule, the lookup key; else "".
        cursor: Where the page after this line begins.
    """

    at: datetime
    actor: str
    via: str
    action: str
    object: str
    detail: str
    key: str = ""
    cursor: Cursor


class Audit:
    """The table `audit`, with the changes of the rules."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool

    async def record(
        self,
        *,
        actor: str,
        via: str,
        action: str,
        object: str,  # noqa: A002 - the column's name
        detail: str = "",
        on: Connection | None = None,
    ) -> None:
        """Record what somebody did.

        Args:
            actor: Who.
            via: `cli`, `panel` or `api`.
            action: What, such as `queue bounce`.
            object: To what.
            detail: More of it, in words.
            on: The transaction in which it is done, so that both are or neither is; None for one of its own.

        Raises:
            StoreUnavailable: It may or may not be recorded.
        """
        values = [_text(each) for each in (actor, via, action, object, detail[:MAX_DETAIL])]
        statement = "INSERT INTO audit (actor, via, action, object, detail) VALUES (%s, %s, %s, %s, %s)"
        if on is not None:
            await on.execute(statement, values)
            return
        async with self._pool.statement() as connection:
            await connection.execute(statement, values)

    async def page(self, before: Cursor | None = None, *, limit: int = 100) -> list[Entry]:
        """Return lines, the latest first.

        Args:
            before: Where the page begins: the `cursor` of the last line of the one before; None for the first page.
            limit: The most lines.
        """
        place = before or Cursor()
        values = {"id": place.id, "version": place.version, "limit": limit}
        async with self._pool.transaction() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_ACTS, values)
            acts = await cursor.fetchall()
            await cursor.execute(_VERSIONS, values)
            changes = await cursor.fetchall()
        return _merged(acts, changes, place)[:limit]


def _merged(acts: list[dict[str, Any]], changes: list[dict[str, Any]], place: Cursor) -> list[Entry]:
    """Return both in one list; each is in its own order already, in which nothing is passed over between two pages."""
    merged: list[Entry] = []
    while acts or changes:
        if not changes or (acts and acts[0]["at"] >= changes[0]["at"]):
            row = acts.pop(0)
            place = msgspec.structs.replace(place, id=row.pop("id"))
            merged.append(Entry(**row, cursor=place))
        else:
            row = changes.pop(0)
            place = msgspec.structs.replace(place, version=row["version"])
            merged.append(_changed(row, place))
    return merged


def _changed(row: dict[str, Any], place: Cursor) -> Entry:
    one, version = row["count"] == 1, f"version {row['version']}"
    became = " -> ".join(each or "none" for each in (row["before"], row["after"]))
    return Entry(
        at=row["at"],
        actor=row["actor"],
        via="rules",
        action=f"rule {row['action']}",
        object=row["lookup_key"] if one else f"{row['count']} rules",
        detail=f"{became}, {version}" if one else version,
        key=row["lookup_key"] if one else "",
        cursor=place,
    )


def _text(text: str) -> str:
    """Return the text without what PostgreSQL cannot hold."""
    return text.replace("\x00", "?").encode("utf-8", "replace").decode()
