"""Settings: wrong ones all at once, before the first message is touched."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.retry import Schedule
from shared.runtime.settings import ConfigError, Settings
from tests.unit.strategies import hostile_text

LEAST: Mapping[str, str] = {
    "PUSHPUSH_AMQP_URL": "amqp://guest:s3cret@rabbit:5672/",
    "PUSHPUSH_DATABASE_URL": "postgresql://mail:s3cret@db/mail",
    "PUSHPUSH_HOSTNAME": "mx.example.org",
    "PUSHPUSH_INSTANCE": "pod-1",
}


def read(**changes: str) -> Settings:
    """Read the least settings with some added, named without the prefix."""
    return Settings.read({**LEAST, **{f"PUSHPUSH_{name}": value for name, value in changes.items()}})


def faults(environ: Mapping[str, str]) -> list[str]:
    """Return the lines of the refusal."""
    with pytest.raises(ConfigError) as refusal:
        Settings.read(environ)
    return str(refusal.value).splitlines()


def test_the_defaults_are_those_of_the_contract() -> None:
    """CONTRACT 4.5: two URLs are enough to run."""
    settings = read()
    expected = Settings(
        amqp_url="amqp://guest:s3cret@rabbit:5672/",
        database_url="postgresql://mail:s3cret@db/mail",
        hostname="mx.example.org",
        instance="pod-1",
        smtp_port=25,
        https_port=443,
        ca_file=None,
        allow_private_targets=False,
        dns_servers=(),
        admin_token=None,
        log_format="json",
    )
    assert expected == settings
    assert settings.max_message_size == 64 * 1024 * 1024
    assert settings.inline_body_limit == 256 * 1024


def test_the_default_schedule_is_that_of_the_contract() -> None:
    """1m 5m 15m 30m 1h 2h 4h, up to five days, with a warning after four hours."""
    waits = tuple(timedelta(minutes=each) for each in (1, 5, 15, 30, 60, 120, 240))
    expected = Schedule(waits=waits, max_age=timedelta(days=5), warn_after=timedelta(hours=4))
    assert expected == read().schedule


def test_variables_of_others_are_let_be() -> None:
    """The environment of a process is full of them."""
    expected = read()
    others = {"PATH": "/bin", "AMQP_URL": "x", "XPUSHPUSH_FOO": "x", "pushpush_foo": "x", "PUSHPUSH": "x"}
    assert expected == Settings.read({**LEAST, **others})


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    """An operator who learns of one fault per restart is kept busy all evening."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    named = faults(
        {
            "PUSHPUSH_DATABASE_URL": "mysql://db",
            "PUSHPUSH_SMTP_PORT": "0",
            "PUSHPUSH_MAX_AGE": "5 days",
            "PUSHPUSH_MAX_AEG": "5d",
            "PUSHPUSH_FOO_FILE": str(secret),
            "PUSHPUSH_ADMIN_TOKEN": "x",
            "PUSHPUSH_ADMIN_TOKEN_FILE": str(secret),
            "PUSHPUSH_HOSTNAME_FILE": str(tmp_path / "absent"),
        }
    )
    expected = {
        "PUSHPUSH_AMQP_URL is missing",
        "PUSHPUSH_DATABASE_URL is malformed",
        "PUSHPUSH_SMTP_PORT is malformed",
        "PUSHPUSH_MAX_AGE is malformed",
        "PUSHPUSH_MAX_AEG is not a setting",
        "PUSHPUSH_FOO_FILE is not a setting",
        "PUSHPUSH_ADMIN_TOKEN_FILE and PUSHPUSH_ADMIN_TOKEN are both set",
        "PUSHPUSH_HOSTNAME_FILE: cannot read",
    }
    assert len(expected) == len(named)
    assert expected == {beginning for beginning in expected for line in named if line.startswith(beginning)}


@pytest.mark.parametrize("password", ["s3/cret", "s3?cret", "s3#cret", "s3[cret", "s3]cret", "s3\u2100cret"])
def test_a_password_that_breaks_the_address_is_told_to_nobody(password: str) -> None:
    """No room starts with it, and tries on for ever; and what cannot be read is not quoted."""
    [fault] = faults({**LEAST, "PUSHPUSH_AMQP_URL": f"amqp://mail:{password}@rabbit:5672/"})
    assert fault.startswith("PUSHPUSH_AMQP_URL is malformed: it is no address of a server")
    assert "s3" not in fault
    assert "s3%2Fcret" in read(AMQP_URL="amqp://mail:s3%2Fcret@rabbit:5672/").amqp_url


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMQP_URL", "http://rabbit"),
        ("AMQP_URL", "rabbit:5672"),
        ("AMQP_URL", "amqp:///"),
        ("AMQP_URL", "amqp://mail@rabbit:amqp/"),
        ("DATABASE_URL", "sqlite:///x"),
        ("HOSTNAME", "my host"),
        ("HOSTNAME", "mx\r\nMAIL FROM:<>"),
        ("INSTANCE", "a b"),
        ("INSTANCE", "a" * 81),
        ("RETRY_SCHEDULE", "1m,,5m"),
        ("RETRY_SCHEDULE", "0s"),
        ("RETRY_SCHEDULE", "soon"),
        ("MAX_AGE", "5"),
        ("MAX_AGE", "999999999d"),
        ("DELAY_WARNING_AFTER", "P4H"),
        ("DNS_SERVERS", "192.0.2.1"),
        ("DNS_SERVERS", "192.0.2.1:dns"),
        ("DNS_SERVERS", "192.0.2.1:0"),
        ("DNS_SERVERS", "192.0.2.1:53,:53"),
        ("SMTP_PORT", "65536"),
        ("SMTP_PORT", "25.5"),
        ("HTTPS_PORT", "https"),
        ("ALLOW_PRIVATE_TARGETS", "maybe"),
        ("MAX_MESSAGE_SIZE", "0"),
        ("MAX_MESSAGE_SIZE", "-1"),
        ("MAX_MESSAGE_SIZE", "64 lots"),
        ("INLINE_BODY_LIMIT", "x"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "-3"),
        ("HOP_CONCURRENCY", "0"),
        ("HOP_CONCURRENCY", "1025"),
        ("HOP_CONCURRENCY", "half"),
        ("PREFETCH", "0"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("METRICS_PORT", "-1"),
    ],
)
def test_a_malformed_value_is_refused_by_its_name(name: str, value: str) -> None:
    """The one line names the variable as the operator wrote it."""
    lines = faults({**LEAST, f"PUSHPUSH_{name}": value})
    assert len(lines) == 1
    assert lines[0].startswith(f"PUSHPUSH_{name} is malformed")


@pytest.mark.parametrize("name", ["AMQP_URL", "DATABASE_URL"])
@pytest.mark.parametrize("empty", [None, "", "  "])
def test_a_missing_url_is_named(name: str, empty: str | None) -> None:
    """An empty variable is one that a template left empty: it counts as missing."""
    environ = {key: value for key, value in LEAST.items() if key != f"PUSHPUSH_{name}"}
    lines = faults(environ if empty is None else {**environ, f"PUSHPUSH_{name}": empty})
    assert len(lines) == 1
    assert lines[0].startswith(f"PUSHPUSH_{name} is missing")


@pytest.mark.parametrize("name", ["ADMIN_TOKEN", "CA_FILE", "DNS_SERVERS", "RETRY_SCHEDULE", "ADMIN_TOKEN_FILE"])
def test_an_empty_variable_is_not_set(name: str) -> None:
    """`ADMIN_TOKEN=${TOKEN:-}` must not open the admin API to everyone who sends an empty token."""
    expected = read()
    assert expected == read(**{name: ""})


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    """Kubernetes mounts secrets; editors leave a line end behind."""
    token = tmp_path / "token"
    token.write_text("  s3cret \n", encoding="utf-8")
    assert read(ADMIN_TOKEN_FILE=str(token)).admin_token == "s3cret"


def test_a_required_value_may_come_from_a_file(tmp_path: Path) -> None:
    """The URLs hold passwords."""
    file = tmp_path / "url"
    file.write_text("amqps://u:p@h/v\n", encoding="utf-8")
    environ = {key: value for key, value in LEAST.items() if key != "PUSHPUSH_AMQP_URL"}
    assert Settings.read({**environ, "PUSHPUSH_AMQP_URL_FILE": str(file)}).amqp_url == "amqps://u:p@h/v"


def test_a_value_in_a_file_is_checked_like_any_other(tmp_path: Path) -> None:
    """And named by its setting."""
    file = tmp_path / "age"
    file.write_text("soon", encoding="utf-8")
    assert faults({**LEAST, "PUSHPUSH_MAX_AGE_FILE": str(file)})[0].startswith("PUSHPUSH_MAX_AGE is malformed")


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_secret_that_is_empty_or_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    """A secret that was mounted before it was filled must not become an empty token."""
    file = tmp_path / "token"
    file.write_bytes(content)
    assert faults({**LEAST, "PUSHPUSH_ADMIN_TOKEN_FILE": str(file)})[0].startswith("PUSHPUSH_ADMIN_TOKEN_FILE: ")


def test_ca_file_is_a_setting_of_its_own(tmp_path: Path) -> None:
    """CA_FILE names the file itself, and CA_FILE_FILE would be a file that names it."""
    authority = tmp_path / "ca.pem"
    pointer = tmp_path / "pointer"
    pointer.write_text(f"{authority}\n", encoding="utf-8")
    assert authority == read(CA_FILE=str(authority)).ca_file
    assert authority == read(CA_FILE_FILE=str(pointer)).ca_file


@pytest.mark.parametrize(
    ("value", "expected"),
    [("64MiB", 64 * 1024**2), ("64 MiB", 64 * 1024**2), ("1GB", 1_000_000_000), ("1024", 1_024), ("0.5KiB", 512)],
)
def test_a_size_is_bytes_or_has_a_unit(value: str, expected: int) -> None:
    """MiB is 1024 * 1024."""
    assert expected == read(MAX_MESSAGE_SIZE=value).max_message_size


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("192.0.2.1:53", (("192.0.2.1", 53),)),
        ("192.0.2.1:53, [2001:db8::1]:5353,", (("192.0.2.1", 53), ("2001:db8::1", 5353))),
        ("dns.example:53", (("dns.example", 53),)),
    ],
)
def test_dns_servers_are_hosts_and_ports(value: str, expected: tuple[tuple[str, int], ...]) -> None:
    """An IPv6 address stands in brackets."""
    assert expected == read(DNS_SERVERS=value).dns_servers


@pytest.mark.parametrize(
    ("concurrency", "own", "share"),
    [
        ("", "", 16),
        ("8", "", 2),
        ("7", "", 1),
        ("3", "", 1),
        ("1", "", 1),
        ("1024", "", 256),
        ("64", "1", 1),
        ("8", "8", 8),
        ("8", "100", 100),
    ],
)
def test_the_share_of_a_next_hop(concurrency: str, own: str, share: int) -> None:
    """A quarter, so that one slow next hop leaves most of the worker to others, and at least one; or as it is set."""
    assert share == read(CONCURRENCY=concurrency, HOP_CONCURRENCY=own).share


def test_durations_and_switches_are_read() -> None:
    """Each in the form that the contract shows."""
    settings = read(RETRY_SCHEDULE="10s, 1m", MAX_AGE="2d", DELAY_WARNING_AFTER="30m", ALLOW_PRIVATE_TARGETS="true")
    expected = Schedule(
        waits=(timedelta(seconds=10), timedelta(minutes=1)),
        max_age=timedelta(days=2),
        warn_after=timedelta(minutes=30),
    )
    assert expected == settings.schedule
    assert settings.allow_private_targets


def test_the_host_name_is_in_normal_form() -> None:
    """It is compared with MX hosts and stands in ASCII header fields."""
    assert read(HOSTNAME="MX.B\u00fccher.example.").hostname == "mx.xn--bcher-kva.example"


def test_the_name_of_the_machine_is_checked_too() -> None:
    """One container in three hundred has a name of digits only: that is a fault in words, not a traceback."""
    assert Settings.model_fields["hostname"].validate_default


def test_secrets_are_not_shown() -> None:
    """Settings are logged, and stand in tracebacks."""
    settings = read(ADMIN_TOKEN="s3cret")
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings)


@given(
    st.dictionaries(
        st.sampled_from([name.upper() for name in Settings.model_fields if name != "ca_file"] + ["FOO", "", "X_Y"]),
        hostile_text,
        max_size=4,
    )
)
def test_any_values_are_settings_or_a_config_error(values: dict[str, str]) -> None:
    """A process that cannot start says why in words, never in a traceback."""
    said = ""
    try:
        assert read(**values).schedule.waits
    except ConfigError as error:
        said = str(error)
    assert "s3cret" not in said
