"""Certificates for the peers, made by a private authority."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import trustme

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def tls_context(
    authority: trustme.CA, names: Sequence[str] = LOCAL_NAMES, *, not_after: datetime | None = None
) -> ssl.SSLContext:
    """Return a server's TLS context with a certificate for `names` (DNS names or IP addresses).

    Args:
        authority: Who signs. A second authority that the client does not know makes an untrusted certificate.
        names: Subject alternative names. Other names than the client's target make a mismatch.
        not_after: When the certificate ends; a moment in the past makes an expired one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    not_before = datetime(2000, 1, 1, tzinfo=UTC)
    authority.issue_cert(*names, not_before=not_before, not_after=not_after).configure_cert(context)
    return context


def ca_file(authority: trustme.CA, path: Path) -> Path:
    """Write the authority's certificate as PEM to `path`, for `PUSHPUSH_CA_FILE`, and return `path`."""
    authority.cert_pem.write_to_path(path)
    return path
