"""Faults of the fleet itself. A refusal by a peer is never one of these: it is an Outcome."""


class FleetError(Exception):
    """Something of ours is away or broken; what was being done must be done again.

    Attributes:
        refused: The server is there and lets us not in: a secret or a name is wrong, which only people can mend.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class BrokerUnavailable(FleetError):  # noqa: N818 - it is a state, not a mistake
    """RabbitMQ is away, or did not confirm: what was published may or may not exist."""


class StoreUnavailable(FleetError):  # noqa: N818
    """PostgreSQL is away, or did not commit: what was written may or may not exist."""
