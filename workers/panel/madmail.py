"""What a client of madmail's admin API reads besides the rules: in its shapes, with what this fleet has of it.

This fleet has no accounts, no mailboxes and no services to switch: of these there are none, and nothing can be set.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from shared.runtime.clock import now
from shared.store.deferred import Deferred
from shared.store.traffic import DomainTraffic, Traffic, TransportTraffic
from workers.panel.envelope import VERSION
from workers.panel.errors import Refused
from workers.panel.fleet import Fleet

_DAY = timedelta(days=1)
_SERVERS = 50  # domains that are listed, those with the most mail
_STARTED = time.time()
_NAMES = (
    "smtp_hostname message_retention smtp_port submission_port submission_tls_port imap_port imap_tls_port turn_port "
    "sasl_port iroh_port ss_port ss_ws_port ss_grpc_port http_port https_port http_proxy_port http_proxy_path "
    "turn_realm turn_secret turn_relay_ip turn_ttl iroh_relay_url ss_cipher ss_password http_proxy_username "
    "http_proxy_password admin_path admin_web_path dclogin_imap_security dclogin_smtp_security language"
)
_SWITCHES = (
    "jit_registration turn_enabled iroh_enabled ss_enabled auto_purge_seen_enabled message_retention_enabled "
    "ss_ws_enabled ss_grpc_enabled http_proxy_enabled log_disabled admin_web_enabled webimap_enabled websmtp_enabled "
    "registration_token_required"
)
_PORTS = "smtp submission submission_tls imap imap_tls turn sasl iroh http https"
_DISK = {"total_bytes": 0, "used_bytes": 0, "available_bytes": 0, "percent_used": 0}


async def resource(fleet: Fleet, name: str, method: str) -> object:
    """Return what a resource says.

    Raises:
        Refused: There is no such resource here, or nothing that could be done to it.
    """
    found = _RESOURCES.get(name)
    if found is None and name.startswith("/admin/settings/"):
        return _setting(name.removeprefix("/admin/settings/")) if method == "GET" else _nothing(name)
    if found is None and name.startswith("/admin/services/"):
        return {"status": "disabled"} if method == "GET" else _nothing(name)
    if found is None:
        raise Refused(404, f"unknown resource: {name[:200]}")
    if method != "GET":
        return _nothing(name)
    return await found(fleet)


def _nothing(name: str) -> object:
    raise Refused(404, f"{name[:200]} has no meaning here: this fleet only delivers outbound mail")


async def _status(fleet: Fleet) -> dict[str, object]:
    """Return the numbers of the last day; madmail's are of all time, which nobody counts here."""
    traffic, since = Traffic(fleet.pool), now() - _DAY
    hours, domains, waiting = await asyncio.gather(
        traffic.by_hour(since=since), traffic.by_domain(since=since, limit=1_000), Deferred(fleet.pool).count()
    )
    sent = sum(each.delivered for each in hours)
    attempts = sum(each.attempts for each in hours)
    return {
        "version": VERSION,
        "users": {"registered": 0},
        "uptime": _uptime(),
        "email_servers": _reached(domains),
        "federation_traffic": {
            "inbound": 0,
            "outbound": sent,
            "queued": waiting,
            "expired": sum(each.bounced + each.dropped for each in hours),
            "mean_latency_ms": sum(each.ms for each in hours) / attempts if attempts else 0,
            "health": _health(domains),
        },
        "message_retention": {"enabled": False, "days": 0, "retention": ""},
        "sent_messages": sent,
        "outbound_messages": sent,
        "received_messages": 0,
    }


def _reached(domains: Sequence[DomainTraffic]) -> dict[str, int]:
    reached = [each.domain for each in domains if each.delivered]
    literal = sum(each.startswith("[") for each in reached)
    return {
        "connections": len(reached),
        "connection_ips": len(reached),
        "domain_servers": len(reached) - literal,
        "ip_servers": literal,
    }


def _health(domains: Sequence[DomainTraffic]) -> dict[str, int]:
    bad = sum(not each.delivered for each in domains)
    perfect = sum(each.delivered > 0 and each.attempts == each.delivered for each in domains)
    return {"perfect": perfect, "federated": len(domains) - bad - perfect, "bad": bad}


async def _overview(fleet: Fleet) -> dict[str, object]:
    return await _status(fleet) | {"disk": _DISK, "tokens": {"total": 0}, "settings": await _settings(fleet)}


async def _storage(fleet: Fleet) -> dict[str, object]:
    del fleet
    return {"disk": _DISK, "state_dir": {"path": "", "size_bytes": 0}}


async def _settings(fleet: Fleet) -> dict[str, object]:
    closed: dict[str, object] = {"registration": "closed"}
    return (
        closed
        | dict.fromkeys(_SWITCHES.split(), "disabled")
        | {name: _setting(name) for name in _NAMES.split()}
        | {f"{name}_access": "local" for name in _PORTS.split()}
        | {"smtp_hostname": {"key": "smtp_hostname", "value": fleet.settings.hostname, "is_set": True}}
    )


async def _servers(fleet: Fleet) -> dict[str, object]:
    """Return the domains with the most mail of the last day."""
    traffic, since = Traffic(fleet.pool), now() - _DAY
    domains = await traffic.by_domain(since=since, limit=_SERVERS)
    details = await asyncio.gather(*(traffic.of_domain(each.domain, since) for each in domains))
    waiting: dict[str, int] = {}
    for total in await Deferred(fleet.pool).totals(limit=1_000):
        waiting[total.domain] = waiting.get(total.domain, 0) + total.deliveries
    servers = [
        _server(each, {part.transport: part for part in parts}, waiting.get(each.domain, 0))
        for each, parts in zip(domains, details, strict=True)
    ]
    return {"servers": servers, "total": len(servers)}


def _server(domain: DomainTraffic, by: dict[str, TransportTraffic], queued: int) -> dict[str, object]:
    none = TransportTraffic(transport="")
    https, smtp = by.get("https", none), by.get("smtp", none)
    return {
        "domain": domain.domain,
        "queued_messages": queued,
        "failed_http": 0,
        "failed_https": https.bounced + https.dropped,
        "failed_smtp": smtp.bounced + smtp.dropped,
        "success_http": 0,
        "success_https": https.delivered,
        "success_smtp": smtp.delivered,
        "inbound_deliveries": 0,
        "successful_deliveries": domain.delivered,
        "mean_latency_ms": domain.ms / domain.attempts if domain.attempts else 0,
        "last_active": 0,
    }


async def _queue(fleet: Fleet) -> dict[str, object]:
    return {"total": await Deferred(fleet.pool).count()}


def _always(body: dict[str, object]) -> Callable[[Fleet], Awaitable[object]]:
    async def answer(fleet: Fleet) -> object:
        del fleet
        return body

    return answer


def _setting(name: str) -> dict[str, object]:
    return {"key": name[:200], "value": "", "is_set": False}


def _uptime() -> dict[str, str]:
    return {
        "boot_time": datetime.fromtimestamp(_STARTED, UTC).isoformat(timespec="seconds"),
        "duration": str(timedelta(seconds=int(time.time() - _STARTED))),
    }


_RESOURCES: dict[str, Callable[[Fleet], Awaitable[object]]] = {
    "/admin/status": _status,
    "/admin/overview": _overview,
    "/admin/storage": _storage,
    "/admin/settings": _settings,
    "/admin/settings/federation": _always({"enabled": True, "policy": "ACCEPT"}),
    "/admin/federation/servers": _servers,
    "/admin/federation/rules": _always({"rules": [], "total": 0}),
    "/admin/queue": _queue,
    "/admin/accounts": _always({"accounts": [], "total": 0}),
    "/admin/blocklist": _always({"blocked": [], "total": 0}),
    "/admin/quota": _always({"total_storage_bytes": 0, "accounts_count": 0, "default_quota_bytes": 0}),
    "/admin/exchangers": _always({"exchangers": [], "total": 0}),
    "/admin/registration-token": _always({"tokens": [], "total": 0}),
    "/admin/registration": _always({"status": "closed"}),
    "/admin/registration/jit": _always({"status": "disabled"}),
}
