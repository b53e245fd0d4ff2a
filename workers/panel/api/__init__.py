"""The admin API, one file for each noun, below /api/v1."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.security import HTTPBearer

from workers.panel.api import (
    audit,
    bulk,
    dead,
    explain,
    history,
    overrides,
    queue,
    queue_acts,
    queue_state,
    release,
    session,
    tokens,
    trace,
    traffic,
)
from workers.panel.errors import Faulty

PREFIX = "/api/v1"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Faulty, "description": words}
    for status, words in {
        400: "The request cannot be read",
        401: "No token, or one that is none",
        403: "The token's role is not enough",
        413: "The request is too large",
        422: "A field is not acceptable",
        429: "Too many tries to log in failed",
        503: "PostgreSQL or RabbitMQ is away",
    }.items()
}
_NOUNS = (
    overrides,
    bulk,
    history,
    release,
    explain,
    queue,
    queue_state,
    queue_acts,
    dead,
    trace,
    traffic,
    tokens,
    audit,
    session,
)


def router() -> APIRouter:
    """Return all of it."""
    # The gate has looked at the token; this tells whoever reads the OpenAPI document of it.
    told = Depends(HTTPBearer(auto_error=False, description="A token, made with `pushpush token make`."))
    whole = APIRouter(prefix=PREFIX, responses=_REFUSALS, dependencies=[told])
    for each in _NOUNS:
        whole.include_router(each.router)
    return whole
