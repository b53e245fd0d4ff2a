"""/api/v1/session: who asks, and what they may do."""

from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from shared.store.tokens import Role
from workers.panel.access import Viewer
from workers.panel.api.shape import Told

router = APIRouter(tags=["access"])


class SessionOut(Told):
    """Whoever asks."""

    name: str
    role: Role
    via: Literal["panel", "api"]
    csrf: str = Field(description="With a session, what changes must send in X-CSRF-Token; empty with a token")


@router.get("/session")
async def session(who: Viewer) -> SessionOut:
    """Show whose token it is, and its role."""
    return SessionOut.model_validate(who)
