"""Settings: environment variables that begin with PUSHPUSH_, read once, every fault reported at once.

`PUSHPUSH_X_FILE` reads X from a file, as Kubernetes mounts secrets. An empty variable counts as not set, so that
`X=${X:-}` works; an empty file is a fault, for nobody means an empty secret. A name that is not known is refused: it is
a typing error that would otherwise be found on the day it matters.
"""

import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from shared.mail.domain import normalise
from shared.mail.retry import Schedule, parse_duration, parse_waits

PREFIX = "PUSHPUSH_"


class ConfigError(Exception):
    """The settings are not usable; the message lists every fault, one a line."""


def _servers(text: object) -> object:
    if not isinstance(text, str):
        return text
    servers = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        host, _, port = part.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"{part!r} is not HOST:PORT")
        servers.append((host.strip("[]"), int(port)))
    return tuple(servers)


def _words(text: object) -> object:
    return tuple(filter(None, (each.strip() for each in text.split(",")))) if isinstance(text, str) else text


def _duration(text: object) -> object:
    return parse_duration(text) if isinstance(text, str) else text


def _waits(text: object) -> object:
    return parse_waits(text) if isinstance(text, str) else text


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        readable = parts.port != 0 and bool(parts.hostname)
    except ValueError:  # its words may quote the password
        readable = False
    if not readable:
        raise ValueError("it is no address of a server; of a password, / ? # [ ] are written %2F %3F %23 %5B %5D")
    return url


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Settings(BaseModel):
    """What an operator can set. Field `x` is the variable PUSHPUSH_X."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    amqp_url: Annotated[str, AfterValidator(_address)] = Field(
        repr=False, pattern=r"^amqps?://", description="RabbitMQ, amqp://USER:PASSWORD@HOST:PORT/VHOST"
    )
    database_url: str = Field(
        repr=False, pattern=r"^postgres(ql)?://", description="PostgreSQL, postgresql://USER@HOST/DATABASE"
    )
    hostname: Annotated[str, BeforeValidator(normalise)] = Field(
        default_factory=socket.gethostname, validate_default=True, description="EHLO name and the `by` of Received"
    )
    instance: str = Field(
        default_factory=socket.gethostname, pattern=r"^[!-~]{1,80}$", description="Name of this machine or pod"
    )

    retry_schedule: Annotated[tuple[timedelta, ...], BeforeValidator(_waits)] = Field(
        default=parse_waits("1m,5m,15m,30m,1h,2h,4h"), min_length=1, description="Waits between attempts; last repeats"
    )
    max_age: Duration = Field(default=timedelta(days=5), description="When undelivered mail is given up")
    delay_warning_after: Duration = Field(default=timedelta(hours=4), description="When the sender is told it is late")

    dns_servers: Annotated[tuple[tuple[str, Port], ...], BeforeValidator(_servers)] = Field(
        default=(), description="HOST:PORT,... instead of the system's"
    )
    smtp_port: Port = Field(default=25, description="Where a route names none")
    https_port: Port = Field(default=443, description="Where a route names none")
    ca_file: Path | None = Field(default=None, description="Certificates to trust besides the system's")
    allow_private_targets: bool = Field(default=False, description="Let mail without a rule go to private addresses")
    max_message_size: ByteSize = Field(default=ByteSize(64 * 1024**2), gt=0, description="Larger messages are refused")
    inline_body_limit: ByteSize = Field(default=ByteSize(256 * 1024), description="Larger bodies travel as a reference")

    admin_token: str | None = Field(
        default=None, repr=False, description="Opens panel and admin API as admin, until there are tokens"
    )
    panel_host: str = Field(default="127.0.0.1", description="Where panel and admin API listen; 0.0.0.0 in a pod")
    panel_port: Port = Field(default=8080, description="Where panel and admin API listen")
    panel_proxies: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        default=(), description="ADDRESS,... of proxies in front of the panel whose X-Forwarded-* are believed"
    )
    journal_addresses: Literal["full", "domain", "hash"] = Field(
        default="full", description="How the journal keeps addresses: whole, the domain only, or a keyed hash"
    )
    journal_key: str | None = Field(
        default=None, repr=False, min_length=16, description="Of the hash, the same for journal, panel and CLI"
    )
    journal_retention: Duration = Field(default=timedelta(days=14), description="How long events are kept")
    traffic_retention: Duration = Field(default=timedelta(days=400), description="How long hourly counters are kept")
    concurrency: int = Field(default=64, ge=1, le=1024, description="Deliveries at once in a process")
    hop_concurrency: int | None = Field(
        default=None, ge=1, le=1024, description="Of those, at once to one next hop; a quarter when not set"
    )
    prefetch: int = Field(default=256, ge=1, le=10_000, description="Messages a router holds at once")
    drain: Duration = Field(
        default=timedelta(seconds=25), description="How long deliveries in hand may take when a worker is told to stop"
    )
    traces: Literal["off", "otlp"] = Field(
        default="off", description="otlp sends OpenTelemetry traces where the OTEL_EXPORTER_OTLP_* variables say"
    )
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_addresses: bool = Field(default=False, description="Write whole addresses to the log, not only domains")
    metrics_port: int = Field(default=0, ge=0, le=65_535, description="/metrics, /livez and /readyz; 0 is off")
    metrics_host: str = Field(default="127.0.0.1", description="Where they listen; 0.0.0.0 in a pod")

    @model_validator(mode="after")
    def _has_key(self) -> Self:
        if self.journal_addresses == "hash" and self.journal_key is None:
            raise ValueError("PUSHPUSH_JOURNAL_ADDRESSES is hash, so PUSHPUSH_JOURNAL_KEY must be set")
        return self

    @property
    def share(self) -> int:
        """Deliveries to one next hop at once in a process."""
        return self.hop_concurrency or max(1, self.concurrency // 4)

    @property
    def schedule(self) -> Schedule:
        """The patience of the fleet, as a value."""
        return Schedule(waits=self.retry_schedule, max_age=self.max_age, warn_after=self.delay_warning_after)

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from an environment.

        Raises:
            ConfigError: Names every variable that is missing, malformed or unknown.
        """
        values, faults = _collect(environ)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            faults += [_sentence(each["loc"], each["type"], each["msg"]) for each in error.errors()]
        else:
            if not faults:
                return settings
        raise ConfigError("\n".join(faults))


def _collect(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name in sorted(each for each, value in environ.items() if each.startswith(PREFIX) and value.strip()):
        field = name.removeprefix(PREFIX).lower()
        if field in Settings.model_fields or not field.endswith("_file"):
            values[field] = environ[name]
            continue
        field = field.removesuffix("_file")
        if field not in Settings.model_fields:
            faults.append(f"{name} is not a setting of pushpush; is it misspelt?")
            continue
        if environ.get(PREFIX + field.upper(), "").strip():
            faults.append(f"{name} and {PREFIX}{field.upper()} are both set: leave one of them out")
            continue
        try:
            values[field] = Path(environ[name]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{name}: cannot read {environ[name]!r}: {error}")
            continue
        if not values[field]:
            faults.append(f"{name}: {environ[name]!r} is empty")
    return values, faults


def _sentence(where: tuple[int | str, ...], kind: str, message: str) -> str:
    if not where:
        return message.removeprefix("Value error, ")
    name = PREFIX + str(where[0]).upper()
    match kind:
        case "missing":
            return f"{name} is missing ({Settings.model_fields[str(where[0])].description})"
        case "extra_forbidden":
            return f"{name} is not a setting of pushpush; is it misspelt?"
        case _:
            return f"{name} is malformed: {message.removeprefix('Value error, ')}"
