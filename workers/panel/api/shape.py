"""What the nouns of the API have in common: text that is one line, and the shapes of requests and answers."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict

from workers.panel.errors import Faulty

# What would do things to a terminal or cannot be stored. It means the same to pydantic, to Python and to ECMAScript.
LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
MAX_KEY = 300  # characters; a domain has at most 253
BIGGEST = 2**63 - 1  # what the tables hold


class Asked(BaseModel):
    """A body that is sent to us. A field that we do not know is refused, for it may be a typing error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Told(BaseModel):
    """A body that we send, read from a value with fields of these names."""

    model_config = ConfigDict(from_attributes=True)


Key = Annotated[
    str,
    Path(
        min_length=1,
        max_length=MAX_KEY,
        pattern=LINE,
        description="A domain (a.com), its subdomains (*.a.com), an address ([192.0.2.1]), or *",
    ),
]
Search = Annotated[str | None, Query(max_length=200, pattern=LINE, description="Only those with this text in them")]
Limit = Annotated[int, Query(ge=1, le=1_000, description="At most so many")]
Id = Annotated[int, Path(ge=1, le=BIGGEST)]


def _time(text: object) -> object:
    """Read a time as it is written; pydantic would also take a number for one."""
    return datetime.fromisoformat(text) if isinstance(text, str) else text


Moment = Annotated[AwareDatetime, BeforeValidator(_time)]


def missing(what: str) -> dict[int | str, dict[str, Any]]:
    """Return how the OpenAPI document tells that something may not be there."""
    return {404: {"model": Faulty, "description": f"There is no such {what}"}}


CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": Faulty, "description": "It is no longer as the request takes it to be; nothing was changed"}
}
