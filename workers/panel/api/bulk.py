"""/api/v1/import and /api/v1/export: many rules at once, all or nothing."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from shared.mail.rule import Rule
from shared.runtime.clock import now
from workers.panel.access import Viewer
from workers.panel.api.change import Asks, changing, followed_out
from workers.panel.api.history import DifferencesOut, differences
from workers.panel.api.shape import CONFLICT
from workers.panel.errors import Refused
from workers.panel.fleet import Ours

router = APIRouter(tags=["rules"])

Text = Literal["csv", "yaml", "json"]
Form = Literal["csv", "yaml", "json", "sqlite"]
_TYPES: dict[Text, str] = {"csv": "text/csv; charset=utf-8", "yaml": "application/yaml", "json": "application/json"}
_FILE = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}
_FILES = {200: {"content": {each.partition(";")[0]: {} for each in _TYPES.values()}, "description": "The file"}}


@router.get("/export", response_class=Response, responses=_FILES)  # type: ignore[arg-type] # it is as FastAPI documents
async def export(who: Viewer, fleet: Ours, form: Annotated[Text, Query(alias="format")] = "csv") -> Response:
    """Return every rule in a form that `import` takes again."""
    del who
    from shared.fleet.files import write  # noqa: PLC0415 - slow to load, and only needed here

    stored = await fleet.overrides.matching()
    rows = ((each.rule, each.created_at, each.updated_at) for each in stored)
    written = await asyncio.to_thread(write, rows, form)
    name = {"Content-Disposition": f'attachment; filename="endpoint-cache.{form}"'}
    return Response(written, media_type=_TYPES[form], headers=name)


@router.post("/import", responses=CONFLICT, openapi_extra=_FILE)
async def import_(
    request: Request,
    fleet: Ours,
    ask: Asks,
    *,
    form: Annotated[Form, Query(alias="format", description="What the body holds; sqlite is madmail's database")],
    whole: Annotated[bool, Query(description="true removes the rules that the file does not name")] = False,
    dry_run: Annotated[bool, Query(description="true shows the difference, and changes nothing")] = False,
) -> DifferencesOut:
    """Make or change every rule of a file, as one version."""
    from shared.fleet.files import FileError  # noqa: PLC0415 - slow to load, and only needed here

    try:
        rules = await asyncio.to_thread(_read, await request.body(), form)
    except FileError as error:
        raise Refused(422, str(error), fields={"body": "it cannot be taken"}) from error
    if whole and not rules and not dry_run:
        raise Refused(422, "the file has no rules: it would remove every rule there is")
    change = changing(fleet, ask)
    saved = await change.rules.apply(
        {rule.lookup_key: rule for rule in rules},
        actor=ask.actor,
        release=ask.release,
        action="sync" if whole else "import",
        if_version=ask.if_version,
        whole=whole,
        only_changed=True,
        dry=dry_run,
    )
    return differences(saved.changes, None if dry_run else followed_out(await change.follow(saved)))


def _read(data: bytes, form: Form) -> list[Rule]:
    from shared.fleet.files import read, read_sqlite  # noqa: PLC0415

    if form != "sqlite":
        return read(data, form, now=now())
    with tempfile.TemporaryDirectory(prefix="pushpush-import-") as folder:
        path = Path(folder) / "rules.db"
        path.write_bytes(data)
        return read_sqlite(path, now=now())
