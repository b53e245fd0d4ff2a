"""TLS contexts, made once: loading the system's certificates for each connection costs more than the connection."""

import ssl
from pathlib import Path

from shared.mail.domain import as_address
from shared.mail.route import Tls


class Contexts:
    """A verifying and an encrypting context."""

    def __init__(self, ca_file: Path | None) -> None:
        """Trust the system's certificates, and those of a file besides.

        Raises:
            OSError: The file cannot be read.
            ssl.SSLError: The file holds no certificate.
        """
        self.verify = ssl.create_default_context()
        if ca_file is not None:
            self.verify.load_verify_locations(ca_file)
        # Without the system's certificates, which it would not look at.
        self.encrypt = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.encrypt.check_hostname = False
        self.encrypt.verify_mode = ssl.CERT_NONE


def for_https(tls: Tls | None, host: str) -> Tls:
    """Return what HTTPS demands: verified for names and encrypted only for IP literals, unless the rule says more."""
    if tls is not None:
        return tls
    return "verify" if as_address(host) is None else "encrypt"
