"""Endpoint Cache: many rules at once, from a file and to a file.

The difference is shown first. The page that shows it carries the file, so that what is applied is what was seen, and
nothing is kept here meanwhile.
"""

import asyncio
import base64
import binascii
import zlib
from typing import Annotated, Final, Literal

from fastapi import APIRouter, File, Form, Query, Response, UploadFile

from shared.fleet.files import FileError, format_of, read, write
from shared.mail.rule import Rule, RuleError
from shared.runtime.clock import now
from shared.store.overrides import ConflictError
from workers.panel.access import Operator
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.rules import changing, told
from workers.panel.pages.telling import summary
from workers.panel.pages.view import BIGGEST, Page, View
from workers.panel.words import plural, size

router = APIRouter(prefix="/endpoint-cache")

Text = Literal["csv", "yaml", "json"]
_MOST: Final = 24 * 1024 * 1024  # bytes of a file; the gate takes 32 MiB with all that is around it
_PACKED: Final = 16 * 1024 * 1024  # characters of a packed file
_NO_RULES: Final = "The file has no rules: it would remove every rule there is"
_TYPES: Final = {"csv": "text/csv", "yaml": "application/yaml", "json": "application/json"}


@router.get("/files")
async def show(view: Page) -> Response:
    """Show both forms."""
    return _forms(view)


@router.get("/export")
async def export(view: Page, fleet: Ours, form: Annotated[Text, Query(alias="format")] = "csv") -> Response:
    """Give all rules as a file."""
    del view
    stored = await fleet.overrides.matching()
    rules = ((each.rule, each.created_at, each.updated_at) for each in stored)
    data = await asyncio.to_thread(write, rules, form)
    headers = {"Content-Disposition": f'attachment; filename="rules.{form}"'}
    return Response(data, media_type=f"{_TYPES[form]}; charset=utf-8", headers=headers)


@router.post("/import")
async def compare(
    view: Page,
    who: Operator,
    fleet: Ours,
    file: Annotated[UploadFile, File()],
    whole: Annotated[Literal["", "yes"], Form()] = "",
) -> Response:
    """Read a file and show what it would change; nothing is changed yet."""
    data = await file.read(_MOST + 1)
    if len(data) > _MOST:
        return _forms(view, f"It is larger than {size(_MOST)}: use `pushpush endpoint-cache import`")
    try:
        form = format_of(file.filename or "", data[:16])
        if form == "sqlite":
            return _forms(view, "A database is read from the disk: use `pushpush endpoint-cache import FILE`")
        rules = await asyncio.to_thread(read, data, form, now=now())
    except FileError as error:
        return _forms(view, *str(error).splitlines())
    if whole and not rules:
        return _forms(view, _NO_RULES)
    packed = await asyncio.to_thread(_pack, data)
    if len(packed) > _PACKED:
        return _forms(view, f"{plural(len(rules), 'rule')} are too many for one page: use the command line")
    return await _asked(view, who, fleet, rules, form=form, packed=packed, whole=bool(whole))


@router.post("/apply/import", form_limits={"max_part_size": _PACKED + 1024})
async def apply(
    *,
    view: Page,
    who: Operator,
    fleet: Ours,
    form: Annotated[Text, Form(alias="format")],
    packed: Annotated[str, Form(max_length=_PACKED)],
    seen: Annotated[int, Form(ge=0, le=BIGGEST)],
    whole: Annotated[Literal["", "yes"], Form()] = "",
) -> Response:
    """Make the rules of the file that was shown; refuse when what it touches was changed since."""
    try:
        rules = await asyncio.to_thread(lambda: read(_unpack(packed), form, now=now()))
    except FileError as error:  # such as an end that has come meanwhile
        return _forms(view, *str(error).splitlines())
    if whole and not rules:
        return _forms(view, _NO_RULES)
    change = changing(fleet, who)
    action = "sync" if whole else "import"
    try:
        saved = await change.rules.apply(
            {rule.lookup_key: rule for rule in rules},
            actor=who.name,
            release=True,
            action=action,
            if_version=seen,
            whole=bool(whole),
            only_changed=True,
        )
    except ConflictError as error:
        refused = f"Nothing was changed: {error}."
        return await _asked(view, who, fleet, rules, form=form, packed=packed, whole=bool(whole), refused=refused)
    words = f"{action.capitalize()} of {plural(len(rules), 'rule')}: {summary(saved.changes)}"
    return told(view, await change.follow(saved), "/endpoint-cache", words)


def _forms(view: View, *faults: str) -> Response:
    return view.show("files.html", status=422 if faults else 200, faults=faults, most=size(_MOST))


async def _asked(
    view: View,
    who: Operator,
    fleet: Fleet,
    rules: list[Rule],
    *,
    form: str,
    packed: str,
    whole: bool,
    refused: str = "",
) -> Response:
    latest = (await fleet.overrides.versions()).version
    try:
        saved = await fleet.overrides.apply(
            {rule.lookup_key: rule for rule in rules}, actor=who.name, release=False, whole=whole, dry=True
        )
    except RuleError as error:
        return _forms(view, str(error))
    lines = [f"The file has {plural(len(rules), 'rule')}: {summary(saved.changes)}, as one version."]
    if whole:
        lines.append("Rules that it does not name are removed.")
    return view.show(
        "confirm.html",
        status=409 if refused else 200,
        title="Import these rules?",
        refused=refused,
        lines=lines,
        facts=(),
        changes=saved.changes,
        action="/endpoint-cache/apply/import",
        fields={"format": form, "packed": packed, "seen": latest, "whole": "yes" if whole else ""},
        button="Import them",
        danger=whole,
        nothing=not saved.changed,
        back="/endpoint-cache/files",
        trail="Import and export",
    )


def _pack(data: bytes) -> str:
    # In letters that a form sends as they are, so that it does not grow on its way back.
    return base64.urlsafe_b64encode(zlib.compress(data, 9)).decode().rstrip("=")


def _unpack(packed: str) -> bytes:
    try:
        opened = zlib.decompressobj()
        whole = packed + "=" * (-len(packed) % 4)
        data = opened.decompress(base64.b64decode(whole, altchars=b"-_", validate=True), _MOST)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise Refused(422, "the file did not come back as it was shown: choose it once more") from error
    if opened.unconsumed_tail or not opened.eof:
        raise Refused(422, "the file did not come back whole: choose it once more")
    return data
