"""Try a rule before it is made, as the fleet is set up, and say whether it should be made."""

from collections.abc import Sequence

from shared.delivery.probe import Found, probe
from shared.delivery.resolver import Resolver
from shared.delivery.tls import Contexts
from shared.mail.rule import Rule
from shared.runtime.settings import ConfigError, Settings


async def tried(settings: Settings, rule: Rule) -> list[Found]:
    """Try every target of a rule; takes some seconds when one does not answer.

    Raises:
        ConfigError: The certificates to trust cannot be read.
    """
    try:
        contexts = Contexts(settings.ca_file)
    except OSError as error:  # of which an SSLError is one
        raise ConfigError(f"PUSHPUSH_CA_FILE cannot be read as certificates: {error}") from error
    return await probe(
        rule,
        contexts=contexts,
        resolver=Resolver(settings.dns_servers),
        smtp_port=settings.smtp_port,
        https_port=settings.https_port,
        hostname=settings.hostname,
    )


def unusable(found: Sequence[Found]) -> list[str]:
    """Return why a rule with these targets should not be made; empty when it may.

    One target that answers is enough, for the others may be down just now. A black hole is never acceptable: mail that
    it takes is lost, and the targets after it are not tried.
    """
    holes = [each for each in found if each.smtp and each.smtp.accepts is False]
    bad = holes or ([] if any(each.usable for each in found) else list(found))
    return [warning for each in bad for warning in each.warnings]
