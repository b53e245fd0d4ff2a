"""The envelope of madmail's admin API: the answer is always HTTP 200, and the status is inside."""

from importlib.metadata import version

import msgspec
from fastapi import Response

RPC = "/api/admin"
VERSION = version("pushpush")
# madmail's panel is a page of its own, on whichever host. The token comes in the body, so no browser adds one one.
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type",
}


def envelope(status: int, *, resource: str = "", body: object = None, error: str | None = None) -> Response:
    """Return an answer.

    Args:
        status: What would have been the HTTP status.
        resource: What was asked for; strangers are not told even that.
        body: The answer, when there is no error.
        error: One sentence.
    """
    told = {"status": status, "resource": resource, "body": body, "error": error, "version": VERSION}
    return Response(msgspec.json.encode(told), 200, CORS, "application/json")
