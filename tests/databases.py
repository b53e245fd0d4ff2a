"""Databases that a test has for itself."""

import uuid

import psycopg


def new_database(url: str, name: str) -> str:
    """Make a database without tables on a server of the run's own, and return its URL.

    It is left there until the server goes: PostgreSQL lets an ordinary user drop none while its own vacuum is at it.

    Args:
        url: Of another database of that server.
        name: What its name begins with.
    """
    full = f"{name}_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {full}".encode())
    return f"{url.rpartition('/')[0]}/{full}"
