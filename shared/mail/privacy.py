"""How much of an address operators' records keep: all, the domain only, or a keyed hash."""

import re
from hashlib import blake2b
from typing import Literal

import msgspec

from shared.mail.address import AddressError, domain_of

Mode = Literal["full", "domain", "hash"]

_HASH = 16  # bytes
# What looks like an address in the words of a peer; more is taken for one rather than less.
_ADDRESS = re.compile(
    r"""(?:"(?:[^"\\]|\\.){1,256}"|[^\s<>()\[\],;:"@]{1,256})@(?:\[[^\]\s]*\]|[^\s<>()\[\],;:"']{1,256})"""
)


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """One way of keeping addresses.

    Attributes:
        mode: Which.
        key: Of the hash. Who knows it can find out whether a given address is in the records.
    """

    mode: Mode = "full"
    key: str = ""

    def address(self, address: str) -> str:
        """Return what is kept of an address: `bob@a.com`, `@a.com`, or `3f...9c@a.com`; the null one stays itself.

        The local part counts as it is written (RFC 5321 2.4), the domain in its normal form, so that whoever searches
        for an address finds it however its domain was written.
        """
        if not address:
            return address
        local = address.rpartition("@")[0]
        try:
            domain = domain_of(address)
        except AddressError:
            if self.mode == "full":
                return address
            domain = ""
        if self.mode == "full":
            return f"{local}@{domain}"
        if self.mode == "domain":
            return f"@{domain}"
        keyed = blake2b(
            f"{local}@{domain}".encode(errors="backslashreplace"),
            key=self.key.encode(errors="backslashreplace")[:64],
            digest_size=_HASH,
        )
        return f"{keyed.hexdigest()}@{domain}"

    def text(self, text: str) -> str:
        """Return the words of a peer without the addresses that they may name."""
        if self.mode == "full" or "@" not in text:
            return text
        return _ADDRESS.sub(lambda found: self.address(found[0].rstrip(".")), text)
