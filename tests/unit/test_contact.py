"""Why PostgreSQL or RabbitMQ cannot be used, in words, and never with a password."""

import psycopg
import pytest
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from pamqp.commands import Connection

from shared.broker.contact import why
from shared.store.contact import refusal

AT = 'connection to server at "127.0.0.1", port 5432 failed: '
URL = "amqp://flee%2Ft:s3cret@127.0.0.1/mail"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ('FATAL:  password authentication failed for user "x"', "refuses the password of user x"),
        ("fe_sendauth: no password supplied", "wants a password, and there is none"),
        ('FATAL:  role "x" does not exist', "has no user x"),
        ('FATAL:  role "x" is not permitted to log in', "lets user x not log in"),
        ('FATAL:  certificate authentication failed for user "x"', "does not believe that we are user x"),
        ('FATAL:  database "y" does not exist', "has no database y"),
        ('FATAL:  permission denied for database "y"\nDETAIL:  no CONNECT', "does not let us into database y"),
        (
            'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "x", database "y", no encryption\nmore',
            'lets us not in, by its pg_hba.conf: no entry for host "10.0.0.1", user "x", database "y", no encryption',
        ),
        ("server does not support SSL, but SSL was required", "does not speak TLS, which sslmode asks for"),
    ],
)
def test_postgresql_refuses(told: str, words: str) -> None:
    """Only people can mend it."""
    found = refusal(psycopg.OperationalError(f"connection failed: {AT}{told}"))
    assert (f"PostgreSQL {words}: check PUSHPUSH_DATABASE_URL", True) == (str(found), found.refused)


@pytest.mark.parametrize(
    "told",
    [
        "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
        "FATAL:  the database system is starting up",
        "FATAL:  sorry, too many clients already",
        "FATAL:  Passwort-Authentifizierung für Benutzer »x« fehlgeschlagen",
    ],
)
def test_postgresql_is_away(told: str) -> None:
    """Or it says something that is not known: then it may end by itself."""
    found = refusal(psycopg.OperationalError(f"{AT}{told}"))
    assert (f"PostgreSQL is away, or refuses: {AT}{' '.join(told.split())}", False) == (str(found), found.refused)


def test_rights_that_are_missing() -> None:
    """On a table; everything else that it says on a connection counts as away."""
    found = refusal(psycopg.errors.InsufficientPrivilege("permission denied for table deferred"))
    assert found.refused
    assert "does not give our user the rights that it needs: permission denied for table deferred" in str(found)


def test_an_address_that_cannot_be_read_is_not_quoted() -> None:
    """A password may be in it."""
    found = refusal(psycopg.ProgrammingError('invalid percent-encoded token: "s3cr%et"'))
    assert (True, False) == (found.refused, "s3cr" in str(found))


def refused_vhost() -> InvalidFrameError:
    """Return the error that aiormq makes of the broker's no to a vhost."""
    frame = Connection.Close(530, "NOT_ALLOWED - vhost mail not found", 10, 40)
    with pytest.raises(InvalidFrameError) as caught:
        raise InvalidFrameError(f"Expected one of ['Connection.OpenOk'], got {frame!r}")
    return caught.value


VHOST = "RabbitMQ refuses the vhost, or user flee/t on it: NOT_ALLOWED - "


@pytest.mark.parametrize(
    ("error", "words", "refused"),
    [
        (ProbableAuthenticationError("ACCESS_REFUSED"), "RabbitMQ refuses user flee/t or the password: check", True),
        (refused_vhost(), f"{VHOST}vhost mail not found; check", True),
        (ConnectionClosed(530, "NOT_ALLOWED - vhost gone"), f"{VHOST}vhost gone; check", True),
        (ChannelAccessRefused("ACCESS_REFUSED - queue x"), "RabbitMQ does not give user flee/t the rights", True),
        (ChannelPreconditionFailed("inequivalent arg"), "RabbitMQ has a queue or exchange of ours with other", False),
        (ConnectionClosed(320, "CONNECTION_FORCED"), "RabbitMQ is away: cannot connect: ", False),
        (InvalidFrameError("garbage"), "RabbitMQ is away: cannot connect: ", False),
        (ConnectionRefusedError(111, "Connect call failed"), "RabbitMQ is away: cannot connect: ", False),
    ],
)
def test_rabbitmq(error: Exception, words: str, refused: bool) -> None:
    """What is refused is told apart from what is away."""
    told, found = why(error, URL)
    assert (True, refused, False) == (told.startswith(words), found, "s3cret" in told), told
