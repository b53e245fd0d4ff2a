"""How much of an address operators' records keep: all, the domain only, or a keyed hash."""

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Literal
from urllib.parse import quote

import msgspec

from shared.mail.address import AddressError, domain_of

Mode = Literal["full", "domain", "hash"]

_HASH = 16  # bytes
# How else an @ is written: in links, in HTML, by keyboards for Chinese and Japanese, by those who hide it from robots.
_AT = re.compile(r"%(?:25)*40|\uff20|\ufe6b|&#0*64;|&#x0*40;|&commat;|[(\[{<]at[)\]}>]", re.IGNORECASE)
# What looks like an address in the words of a peer; more is taken for one rather than less. A word is read once, from
# its beginning and without going back, so that no words of a stranger take long.
_ADDRESS = re.compile(
    r"""((?:"(?:[^"\\]|\\.){1,256}"|(?<![^\s<>()\[\],;:"@])[^\s<>()\[\],;:"@]++)(?:@|[ \t]{1,3}@[ \t]{1,3})"""
    r"""(?:\[[^\]\s]{0,256}\]|[^\s<>()\[\],;:"']++))"""
)
_LONGEST = 256  # characters of a name that is looked for
_HIDDEN = "***"


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

    def text(self, text: str, *about: str) -> str:
        """Return the words of a peer without the addresses that they may name.

        Args:
            text: The words.
            about: The addresses that they may be about. What is before the @ of these is not left alone either, as in
                `user bob unknown`.
        """
        if self.mode == "full":
            return text
        # The odd pieces look like addresses.
        pieces = _ADDRESS.split(_AT.sub("@", text))
        pieces[1::2] = [self._named(each) for each in pieces[1::2]]
        pieces[::2] = self._unnamed(pieces[::2], about)
        return "".join(pieces)

    def _named(self, found: str) -> str:
        local, _, domain = found.rstrip(".").rpartition("@")
        return self.address(f"{local.rstrip()}@{domain.lstrip()}")

    def _unnamed(self, pieces: list[str], about: Iterable[str]) -> list[str]:
        """Return the words between addresses without the names of those whom they are about."""
        folded = "\n".join(pieces).casefold()
        kept = {
            name.casefold(): self.address(address).rpartition("@")[0] or _HIDDEN
            for address in about
            for name in _names(address)
            if name.casefold() in folded
        }
        if not kept:
            return pieces
        longest_first = sorted(kept, key=len, reverse=True)
        whole = re.compile("|".join(map(_whole, longest_first)), re.IGNORECASE)
        return [whole.sub(lambda found: kept.get(found[0].casefold(), _HIDDEN), each) for each in pieces]


def _names(address: str) -> Iterator[str]:
    """Tell how a peer may call somebody: by what is before the @, quoted or not, as in a link, and without a detail."""
    local = address.rpartition("@")[0]
    bare = re.sub(r"\\(.)", r"\1", local[1:-1]) if len(local) > 1 and local[0] == local[-1] == '"' else local
    for each in {local, bare, bare.partition("+")[0], quote(bare, safe="", errors="replace")}:
        if each and len(each) <= _LONGEST:
            yield each


def _whole(name: str) -> str:
    """Return a pattern for a name that is no part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.match(r"\w", name[-1]) else ""
    return f"{before}{re.escape(name)}{after}"
