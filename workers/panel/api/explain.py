"""/api/v1/explain and /api/v1/probe: where mail goes, and whether a target would take it."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from shared.mail.address import domain_of
from shared.mail.domain import normalise
from shared.mail.route import Tls, Transport
from shared.mail.rule import make_rule
from workers.panel.access import Operator, Viewer
from workers.panel.api.rule import RuleOut, Target
from workers.panel.api.shape import BIGGEST, LINE, MAX_KEY, Asked, Told
from workers.panel.errors import Refused
from workers.panel.fleet import Ours

router = APIRouter(tags=["rules"])


class MatchOut(RuleOut):
    """A rule for the domain."""

    set_by: str = Field(description="Who wrote it; empty when the history does not have it")
    set_at: datetime | None
    state: str = Field(description="decides, wider, share or disabled")


class KnownOut(Told):
    """What the fleet remembers of a next hop."""

    hop: str
    state: str
    until: datetime
    reason: str


class HopOut(Told):
    """A transport to a host."""

    target: str = Field(description="As the rule has it; empty without one")
    transport: str
    host: str
    where: str
    tls: str = Field(description="What TLS does there, in words")
    addresses: list[str]
    fault: str | None = Field(description="Why there are no addresses")
    known: list[KnownOut]


class RouterOut(Told):
    """A router."""

    name: str
    applied: int
    live: bool
    current: bool


class ExplainedOut(Told):
    """Where mail to a domain goes, and why."""

    domain: str
    version: int
    released: int
    unreleased: list[str] = Field(description="Keys for this domain with changes that are not released")
    message_id: str | None
    rule: MatchOut | None = Field(description="The rule that decides; null for direct federation")
    beaten: list[MatchOut] = Field(description="The other rules for the domain")
    share: dict[str, float] = Field(description="Percent of the messages by key, when not all go the same way")
    hops: list[HopOut]
    fault: str | None = Field(description="Why nothing is tried, and what becomes of the mail")
    policy: str | None = Field(description="The mode of the domain's MTA-STS policy")
    routers: list[RouterOut]
    agree: bool = Field(description="There are live routers, and each has applied the released version")


class ProbeIn(Asked):
    """A rule to try, saved or not."""

    key: Annotated[str, Field(min_length=1, max_length=MAX_KEY, pattern=LINE)]
    target_host: Target
    transport: Transport = "auto"
    tls: Tls | None = None


class HttpsFoundOut(Told):
    """What is there for POST /mxdeliv."""

    url: str
    speaks: bool | None = Field(description="null when it cannot be known")
    detail: str
    certificate: str | None
    verified: bool | None


class SmtpFoundOut(Told):
    """What is there for SMTP."""

    where: str
    reachable: bool
    accepts: bool | None = Field(description="null for `later`, or when it was not asked")
    recipient: str
    detail: str
    certificate: str | None
    verified: bool | None


class FoundOut(Told):
    """What was found at one target."""

    target: str
    https: HttpsFoundOut | None
    smtp: SmtpFoundOut | None
    warnings: list[str]
    usable: bool = Field(description="false when mail sent there would be lost, bounced or stuck")


class ProbedOut(Told):
    """What was found at the targets of a rule."""

    targets: list[FoundOut]
    usable: bool = Field(description="Whether the rule should be made")
    refused: list[str] = Field(description="Why not")


@router.get("/explain")
async def explain(
    who: Viewer,
    fleet: Ours,
    address: Annotated[
        str, Query(min_length=1, max_length=1_000, pattern=LINE, description="someone@a.com, or a domain")
    ],
    at: Annotated[
        int | None, Query(ge=0, le=BIGGEST, description="A version of the rules; default: the released one")
    ] = None,
    id_: Annotated[
        str | None, Query(alias="id", max_length=1_000, pattern=LINE, description="Of one message, for shares")
    ] = None,
) -> ExplainedOut:
    """Tell where mail to an address goes and why, by the code that the workers run."""
    del who
    from shared.delivery.explain import explain as explained  # noqa: PLC0415 - slow to load, and only needed here

    domain = domain_of(address) if "@" in address else normalise(address)
    if at is not None and at > (latest := (await fleet.overrides.versions()).version):
        raise Refused(422, f"there is no version {at}: the latest is {latest}", fields={"at": "there is none"})
    return ExplainedOut.model_validate(await explained(domain, fleet.pool, fleet.settings, at=at, message_id=id_))


@router.post("/probe")
async def probe(who: Operator, fleet: Ours, body: ProbeIn) -> ProbedOut:
    """Try the targets of a rule: what answers, and would it take mail for the key? No mail is sent."""
    del who
    from shared.delivery.trial import tried, unusable  # noqa: PLC0415 - slow to load, and only needed here

    rule = make_rule(body.key, body.target_host, transport=body.transport, tls=body.tls)
    found = await tried(fleet.settings, rule)
    refused = unusable(found)
    return ProbedOut(targets=[FoundOut.model_validate(each) for each in found], usable=not refused, refused=refused)
