"""Rules as they are sent and told."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from pydantic import Field

from shared.mail.route import Tls, Transport
from shared.mail.rule import MAX_COMMENT, WHOLE, Rule, make_rule, parse_expiry
from shared.runtime.clock import now
from shared.store.overrides import Stored
from workers.panel.api.shape import LINE, Asked, Told
from workers.panel.errors import Refused

_LONGEST_TARGET = 3_000  # characters, of ten targets
_SET = ("target_host", "comment", "transport", "enabled")  # a rule always has these

Target = Annotated[
    str,
    Field(
        min_length=1,
        max_length=_LONGEST_TARGET,
        pattern=LINE,
        description="b.com, b.com:2525, an IP address, or https://b.com[:PORT][/PATH]; several with commas",
    ),
]
Comment = Annotated[str, Field(max_length=MAX_COMMENT, pattern=LINE, description="Why the rule is there")]
Share = Annotated[int, Field(ge=1, le=WHOLE, description="Percent of the messages that take the rule")]
Expires = Annotated[
    str, Field(max_length=40, pattern=LINE, description="When it ends: 90s, 15m, 2h, 5d, or 2026-01-31T18:00Z")
]


class RuleOut(Told):
    """A rule."""

    lookup_key: str
    target_host: str
    comment: str
    transport: Transport
    tls: Tls | None
    expires_at: datetime | None
    enabled: bool
    share: int | None
    version: int


class StoredOut(RuleOut):
    """A saved rule with its dates."""

    created_at: datetime
    updated_at: datetime


class RuleIn(Asked):
    """A rule, whole."""

    target_host: Target
    comment: Comment = ""
    transport: Transport = "auto"
    tls: Tls | None = None
    expires_at: Expires | None = None
    enabled: bool = True
    share: Share | None = None

    def rule(self, key: str) -> Rule:
        """Return it in normal form.

        Raises:
            RuleError: It is malformed.
        """
        return _made(key, self.model_dump())


class RulePatch(Asked):
    """What of a rule is to be different; null takes an end, a share or a demand on TLS away."""

    target_host: Target | None = None
    comment: Comment | None = None
    transport: Transport | None = None
    tls: Tls | None = None
    expires_at: Expires | None = None
    enabled: bool | None = None
    share: Share | None = None

    def rule(self, before: Rule) -> Rule:
        """Return the rule with what is different.

        Raises:
            Refused: A rule cannot be without what is taken away.
            RuleError: It is malformed.
        """
        given = self.model_dump(exclude_unset=True)
        if bad := [name for name in _SET if name in given and given[name] is None]:
            raise Refused(422, f"a rule cannot be without {bad[0]}", fields=dict.fromkeys(bad, "it cannot be null"))
        values = msgspec.structs.asdict(before)
        del values["version"]
        return _made(values.pop("lookup_key"), values | given)


def stored_out(stored: Stored) -> StoredOut:
    """Return a saved rule as it is told."""
    dates = {"created_at": stored.created_at, "updated_at": stored.updated_at}
    return StoredOut.model_validate(msgspec.structs.asdict(stored.rule) | dates)


def _made(key: str, values: dict[str, Any]) -> Rule:
    ends = values["expires_at"]
    expires_at = parse_expiry(ends, now()) if isinstance(ends, str) else ends
    return make_rule(key, values.pop("target_host"), **values | {"expires_at": expires_at})
