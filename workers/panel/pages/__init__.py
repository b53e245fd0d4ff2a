"""The pages of the panel, one file for each."""

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from workers.panel.pages import (
    audit,
    dead,
    dead_letter,
    door,
    explain,
    history,
    overview,
    rule,
    rule_files,
    rule_form,
    rules,
    tokens,
    trace,
    traffic,
    waiting,
    waiting_acts,
)
from workers.panel.pages.view import fault

_PAGES = (
    door,
    overview,
    rules,
    rule,
    rule_form,
    explain,
    history,
    rule_files,
    traffic,
    waiting,
    waiting_acts,
    trace,
    dead,
    dead_letter,
    audit,
    tokens,
)


def routers() -> list[APIRouter]:
    """Return the pages."""
    return [each.router for each in _PAGES]


def error_page(request: Request, status: int, message: str) -> Response:
    """Return the page that tells people of a refusal; it asks no database, which may be what is wrong."""
    return fault(request, getattr(request.state, "who", None), status, HTTPStatus(status).phrase, message)
