"""Tokens: who may do what with the panel and the admin API, by a name that the history shows.

A token's secret is shown once, when it is made; what is kept is its hash. It has 256 bits of chance, so a plain SHA-256
is as good as any slower hash.
"""

import hmac
import re
import secrets
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

import msgspec
from psycopg.rows import class_row

from shared.store.audit import Audit
from shared.store.pool import Pool

Role = Literal["viewer", "operator", "admin"]

ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")  # each may also do what those before it may
PREFIX = "pp_"
BOOTSTRAP = "admin-token"  # the name of whoever comes with ADMIN_TOKEN
_RESERVED = frozenset((BOOTSTRAP, "scheduler"))  # they stand in histories already
_NAME = re.compile(r"[^\W_](?:[\w .@+-]{0,98}[^\W_])?")
_SECRET = re.compile(r"pp_[A-Za-z0-9_-]{43}")
_SEEN = 60  # seconds between two writes of when a token was used


class TokenError(ValueError):
    """The token cannot be made so; the message is one sentence for the person who asked."""


class TakenError(TokenError):
    """There is, or was, a token of that name."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What a secret opens.

    Attributes:
        id: Of the token; None for ADMIN_TOKEN.
        name: Who that is, for the history.
        role: What they may do.
    """

    id: str | None
    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Say whether this role may do what takes that one."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token as lists show it, without its secret."""

    id: str
    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    used_at: datetime | None
    revoked_at: datetime | None
    live: bool


class Tokens:
    """The table `tokens`."""

    def __init__(self, pool: Pool) -> None:
        """Use a pool."""
        self._pool = pool
        self._audit = Audit(pool)

    async def make(self, name: str, role: Role, *, by: str, via: str, expires_at: datetime | None = None) -> str:
        """Make a token and return its secret, which is kept nowhere.

        The name of a token that is revoked or over stays taken: the history must not name two people alike.

        Args:
            name: For the history.
            role: What it may do.
            by: Who makes it, for the audit log.
            via: With what: `cli`, `panel` or `api`.
            expires_at: When it ends by itself.

        Raises:
            TokenError: The name is no name.
            TakenError: It is taken.
            StoreUnavailable: It may or may not have been made; its secret is lost, so revoke it then.
        """
        if not _NAME.fullmatch(name) or name.casefold() in _RESERVED:
            raise TokenError(
                f"the name {name!r} is none for a token: 1 to 100 letters, digits, spaces and . @ + - _, "
                "beginning and ending with a letter or digit, and none of those that the fleet itself has"
            )
        secret = PREFIX + secrets.token_urlsafe(32)
        async with self._pool.transaction() as connection:
            cursor = await connection.execute(
                "INSERT INTO tokens (id, name, role, hash, created_by, expires_at) VALUES (%s, %s, %s, %s, %s, %s) "
                "ON CONFLICT (name) DO NOTHING",
                (secrets.token_hex(8), name, role, digest(secret), by, expires_at),
            )
            if not cursor.rowcount:
                raise TakenError(f"there was a token {name!r} before: a name is given once, so that histories are true")
            ends = f", until {expires_at:%Y-%m-%d %H:%MZ}" if expires_at else ""
            await self._audit.record(
                actor=by, via=via, action="token make", object=name, detail=f"role {role}{ends}", on=connection
            )
        return secret

    async def find(self, secret: str) -> Access | None:
        """Return what a secret opens; None for one that is none, revoked or over."""
        if not _SECRET.fullmatch(secret):
            return None
        hashed = digest(secret)
        async with self._pool.statement() as connection:
            cursor = await connection.execute(
                "SELECT id, name, role, hash, used_at IS NULL OR used_at < now() - make_interval(secs => %s) "
                "FROM tokens WHERE hash = %s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())",
                (_SEEN, hashed),
            )
            row = await cursor.fetchone()
            if row is None or not hmac.compare_digest(row[3], hashed):
                return None
            if row[4]:
                await connection.execute("UPDATE tokens SET used_at = now() WHERE id = %s", (row[0],))
        return Access(id=row[0], name=row[1], role=row[2])

    async def revoke(self, name: str, *, by: str, via: str) -> bool | None:
        """End a token and every session that was opened with it; False when it had ended, None when there is none."""
        async with self._pool.transaction() as connection:
            cursor = await connection.execute("SELECT id, revoked_at FROM tokens WHERE name = %s FOR UPDATE", (name,))
            row = await cursor.fetchone()
            if row is None:
                return None
            if row[1] is not None:
                return False
            await connection.execute("DELETE FROM sessions WHERE token_id = %s", row[:1])
            await connection.execute("UPDATE tokens SET revoked_at = now() WHERE id = %s", row[:1])
            await self._audit.record(actor=by, via=via, action="token revoke", object=name, on=connection)
            return True

    async def all(self) -> list[Token]:
        """Return every token, those of use first, then by name."""
        return await self._tokens("ORDER BY live DESC, name", ())

    async def get(self, name: str) -> Token | None:
        """Return the token of that name."""
        found = await self._tokens("WHERE name = %s", (name,))
        return found[0] if found else None

    async def _tokens(self, rest: str, values: tuple[Any, ...]) -> list[Token]:
        live = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) AS live"
        columns = ", ".join(name for name in Token.__struct_fields__ if name != "live")
        async with self._pool.statement() as connection, connection.cursor(row_factory=class_row(Token)) as cursor:
            await cursor.execute(f"SELECT {columns}, {live} FROM tokens {rest}", values)  # noqa: S608 - constants
            return await cursor.fetchall()


def digest(secret: str) -> bytes:
    """Return what is kept of a secret."""
    return sha256(secret.encode(errors="surrogatepass")).digest()
