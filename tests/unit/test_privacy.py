"""Privacy: nothing of a local part is kept where the setting says so, and what is kept can be searched for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mail.privacy import Mode, Privacy
from tests.unit.strategies import addresses, hostile_text

KEY = "k" * 16
MODES: list[Mode] = ["full", "domain", "hash"]
WORDS = (
    "<{0}@a.example> unknown",
    "no such user {0}@a.example.",
    "({0}@a.example),{0}@a.example;",
    '"{0}@a.example"',
    "'{0}@a.example'",
    "RCPT TO:<{0}@a.example>: refused",
    "mailto:{0}@a.example",
    '"{0} Smith"@a.example is full',
    '"a \\" {0}"@a.example',
    "o'{0}@a.example, {0}'s@a.example",
    "{0}@[192.0.2.1] a.example",
    "{0}%b.example@a.example",
)
secrets = st.text("0123456789xyz", min_size=12, max_size=30)


@pytest.mark.parametrize(
    ("mode", "kept"), [("full", "Bob@a.example"), ("domain", "@a.example"), ("hash", None)], ids=MODES
)
def test_what_is_kept_of_an_address(mode: Mode, kept: str | None) -> None:
    """The local part as it is written (RFC 5321 2.4), the domain in its normal form."""
    found = Privacy(mode=mode, key=KEY).address("Bob@A.Example.")
    if kept is None:
        local, _, kept = found.partition("@")
        assert (32, "a.example") == (len(local), kept)
        assert local == local.lower()
    else:
        assert kept == found


@pytest.mark.parametrize("mode", MODES)
def test_the_null_reverse_path_stays_itself(mode: Mode) -> None:
    """It is nobody's address."""
    assert "" == Privacy(mode=mode, key=KEY).address("")


@given(secrets, st.sampled_from(["domain", "hash"]), hostile_text)
def test_no_local_part_is_kept(secret: str, mode: Mode, before: str) -> None:
    """Whatever else is wrong with the address: a malformed one is not kept whole for that."""
    privacy = Privacy(mode=mode, key=KEY)
    assert secret not in privacy.address(f"{secret}@a.example")
    assert secret not in privacy.address(f"{before}{secret}")


@given(secrets, st.sampled_from(["domain", "hash"]))
def test_no_address_is_left_in_the_words_of_a_peer(secret: str, mode: Mode) -> None:
    """In brackets, quotes, lists, at the end of a sentence; the rest of the words stays."""
    privacy = Privacy(mode=mode, key=KEY)
    for words in WORDS:
        told = privacy.text(f"550 5.1.1 {words.format(secret)}")
        assert secret not in told
        assert "a.example" in told
        assert told.startswith("550 5.1.1 ")


@given(addresses)
def test_an_address_in_words_is_kept_as_by_itself(address: str) -> None:
    """Searched for by the same form."""
    for mode in MODES:
        privacy = Privacy(mode=mode, key=KEY)
        assert privacy.address(address) == privacy.address(privacy.address(address) if mode == "full" else address)


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=40))
def test_another_key_gives_another_hash(one: bytes, other: bytes) -> None:
    """Who does not know the key cannot try addresses; the same key finds what was kept."""
    address = "bob@a.example"
    hashes = {key: Privacy(mode="hash", key=key.hex()).address(address) for key in (one, other)}
    assert hashes[one] == Privacy(mode="hash", key=one.hex()).address(address)
    assert (one.hex()[:64] == other.hex()[:64]) == (hashes[one] == hashes[other])


@given(hostile_text)
def test_any_text_is_taken(text: str) -> None:
    """What rooms tell comes from strangers; no text of theirs stops the journal."""
    for mode in MODES:
        privacy = Privacy(mode=mode, key=KEY)
        assert isinstance(privacy.address(text), str)
        assert isinstance(privacy.text(text), str)
