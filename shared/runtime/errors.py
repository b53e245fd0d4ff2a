"""Faults of the fleet itself. A refusal by a peer is never one of these: it is an Outcome."""


class FleetError(Exception):
    """Something of ours is away or broken; what was being done must be done again."""


class BrokerUnavailable(FleetError):  # noqa: N818 - it is a state, not a mistake
    """RabbitMQ is away, or did not confirm: what was published may or may not exist."""


class StoreUnavailable(FleetError):  # noqa: N818
    """PostgreSQL is away, or did not commit: what was written may or may not exist."""
