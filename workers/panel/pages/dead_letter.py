"""Dead letters: one of them whole, its bytes, and the way back to the fleet."""

from typing import Annotated, Final, Literal

import msgspec
from fastapi import APIRouter, Form, Query, Response

from shared.fleet.dead import NoLetterError, requeue
from shared.fleet.letter import opened, plain
from shared.fleet.resend import StaysDeadError
from shared.fleet.waiting import Who as Actor
from shared.store.dead import DeadLetters, Stored
from workers.panel.access import Operator
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet, Ours
from workers.panel.pages.view import BIGGEST, Line, Page, View

router = APIRouter(prefix="/dead")

_SHOWN: Final = 8_192  # bytes
_VALUE: Final = 2_000  # characters of a header
_NULL: Final = "<>"  # as people write the null reverse-path

Id = Annotated[int, Query(alias="id", ge=0, le=BIGGEST)]


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """The form as somebody filled it in."""

    mail_from: str = ""
    rcpt_to: str = ""


@router.get("/letter")
async def show(view: Page, fleet: Ours, id_: Id) -> Response:
    """Show a letter."""
    return await _show(view, fleet, id_, Filled())


@router.get("/raw")
async def raw(who: Operator, fleet: Ours, id_: Id) -> Response:
    """Give the bytes of a letter, to keep and not to look at in a browser; mail may be in them."""
    letter = await _letter(fleet, id_)
    await fleet.audit.record(actor=who.name, via=who.via, action="dead raw", object=str(id_))
    headers = {"Content-Disposition": f'attachment; filename="letter-{id_}.eml"'}
    return Response(letter.data, media_type="application/octet-stream", headers=headers)


@router.post("/requeue")
async def send_again(
    *,
    view: Page,
    who: Operator,
    fleet: Ours,
    id_: Annotated[int, Form(alias="id", ge=0, le=BIGGEST)],
    mail_from: Annotated[Line, Form(max_length=400)] = "",
    rcpt_to: Annotated[str, Form(max_length=100_000)] = "",
    force: Annotated[Literal["", "yes"], Form()] = "",
) -> Response:
    """Send a letter again; refuse when it would come back at once."""
    recipients = [each for each in (part.strip() for part in rcpt_to.split(",")) if each]
    try:
        sent = await requeue(
            id_,
            fleet.pool,
            fleet.publisher,
            who=Actor(actor=who.name, via=who.via),
            mail_from=None if not mail_from else "" if mail_from == _NULL else mail_from,
            rcpt_to=recipients or None,
            force=bool(force),
        )
    except NoLetterError as error:
        raise Refused(404, str(error)) from error
    except StaysDeadError as error:
        return await _show(view, fleet, id_, Filled(mail_from=mail_from, rcpt_to=rcpt_to), fault=str(error))
    lost = [f"Headers that cannot be written as they came went missing: {', '.join(sent.dropped)}."]
    return view.done("/dead", f"Letter {id_} is in {sent.queue} again.", *(lost if sent.dropped else ()))


async def _letter(fleet: Fleet, id_: int) -> Stored:
    letter = await DeadLetters(fleet.pool).get(id_)
    if letter is None:
        raise Refused(404, f"there is no dead letter {id_}")
    return letter


async def _show(view: View, fleet: Fleet, id_: int, form: Filled, *, fault: str = "") -> Response:
    letter = await _letter(fleet, id_)
    return view.show(
        "dead_letter.html",
        status=422 if fault else 200,
        letter=letter,
        seen=opened(letter),
        headers=[(name, _value(value)) for name, value in sorted(letter.headers.items())],
        text=letter.data[:_SHOWN].decode("utf-8", "backslashreplace"),
        shown=_SHOWN,
        form=form,
        fault=fault,
    )


def _value(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(plain(value)).decode()
    return text if len(text) <= _VALUE else f"{text[:_VALUE]} ..."
