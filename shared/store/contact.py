"""Why PostgreSQL lets nobody in, in words for an operator."""

import re
from collections.abc import Callable
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from shared.runtime.errors import StoreUnavailable

CHECK = "check PUSHPUSH_DATABASE_URL"
# PostgreSQL gives no code to a connection that it refuses, only these words; in another language than English they are
# told as they are, and count as "away".
_REFUSALS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r'password authentication failed for user "([^"]*)"', "refuses the password of user {}"),
        (r"no password supplied()", "wants a password, and there is none"),
        (r'role "([^"]*)" does not exist', "has no user {}"),
        (r'role "([^"]*)" is not permitted to log in', "lets user {} not log in"),
        (r'authentication failed for user "([^"]*)"', "does not believe that we are user {}"),
        (r'database "([^"]*)" does not exist', "has no database {}"),
        (r'permission denied for database "([^"]*)"', "does not let us into database {}"),
        (r"no pg_hba\.conf entry for ([^\n]*)", "lets us not in, by its pg_hba.conf: no entry for {}"),
        (r"server does not support SSL()", "does not speak TLS, which sslmode asks for"),
    )
)

Note = Callable[[StoreUnavailable | None], None]


class Noting(AsyncConnection[TupleRow]):
    """A connection that says how connecting went: the pool tells nobody why it has none."""

    @classmethod
    async def connect(cls, conninfo: str = "", *, note: Note, **kwargs: Any) -> Self:  # type: ignore[override]
        """Connect; `note` is told why not, or None when it went well."""
        try:
            made = await super().connect(conninfo, **kwargs)
        except Exception as error:
            note(refusal(error))
            raise
        note(None)
        return made


def refusal(error: Exception) -> StoreUnavailable:
    """Return in our words why nobody can connect."""
    if isinstance(error, psycopg.ProgrammingError) and not error.sqlstate:
        # psycopg quotes what it cannot read, and a password may be in it.
        return StoreUnavailable("PUSHPUSH_DATABASE_URL cannot be read as the address of a PostgreSQL", refused=True)
    text = str(error)
    for pattern, words in _REFUSALS:
        if (found := pattern.search(text)) is not None:
            return StoreUnavailable(f"PostgreSQL {words.format(found[1])}: {CHECK}", refused=True)
    return away(error)


def away(error: Exception) -> StoreUnavailable:
    """Return an error of psycopg's, or of the network, as our own."""
    words = " ".join(str(error).split())  # psycopg's has more than one line
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return StoreUnavailable(f"PostgreSQL does not give our user the rights that it needs: {words}", refused=True)
    return StoreUnavailable(f"PostgreSQL is away, or refuses: {words or type(error).__name__}")
