"""/api/v1/tokens: who may do what; for admins."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field

from shared.mail.rule import parse_expiry
from shared.runtime.clock import now
from shared.store.tokens import Role
from workers.panel.access import Admin
from workers.panel.api.rule import Expires
from workers.panel.api.shape import CONFLICT, LINE, Asked, Told, missing
from workers.panel.errors import Refused
from workers.panel.fleet import Ours

router = APIRouter(prefix="/tokens", tags=["access"])

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=LINE)]


class TokenOut(Told):
    """A token, without its secret."""

    id: str
    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    used_at: datetime | None
    revoked_at: datetime | None
    live: bool


class TokensOut(Told):
    """Every token, also those of the past."""

    tokens: list[TokenOut]


class TokenIn(Asked):
    """A token to be made."""

    name: Name
    role: Role
    expires_at: Expires | None = None


class MadeOut(Told):
    """A token that was made."""

    token: TokenOut
    secret: str = Field(description="Shown now and never again")


class RevokedOut(Told):
    """A token that is over."""

    token: TokenOut


@router.get("")
async def list_(who: Admin, fleet: Ours) -> TokensOut:
    """Show every token."""
    del who
    return TokensOut(tokens=[TokenOut.model_validate(each) for each in await fleet.tokens.all()])


@router.post("", status_code=201, responses=CONFLICT)
async def make(who: Admin, fleet: Ours, body: TokenIn) -> MadeOut:
    """Make a token."""
    expires_at = None if body.expires_at is None else parse_expiry(body.expires_at, now())
    secret = await fleet.tokens.make(body.name, body.role, by=who.name, via=who.via, expires_at=expires_at)
    token = await fleet.tokens.get(body.name)
    return MadeOut(token=TokenOut.model_validate(token), secret=secret)


@router.delete("/{name}", responses=missing("token"))
async def revoke(
    who: Admin, fleet: Ours, name: Annotated[str, Path(min_length=1, max_length=100, pattern=LINE)]
) -> RevokedOut:
    """End a token, and every session that was opened with it."""
    if await fleet.tokens.revoke(name, by=who.name, via=who.via) is None:
        raise Refused(404, f"there is no token {name}")
    return RevokedOut(token=TokenOut.model_validate(await fleet.tokens.get(name)))
