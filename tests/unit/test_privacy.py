"""Privacy: nothing of a local part is kept where the setting says so, and what is kept can be searched for."""

import time

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
    "https://a.example/why?r={0}%40a.example",
    "https://a.example/why?r={0}%2540a.example",
    "{0} @ a.example",
    "{0}\uff20a.example",
    "{0}&#64;a.example, {0}&#x40;a.example",
    "{0}(at)a.example [{0}[at]a.example]",
    "@@{0}@a.example",
    "xxxxxxxxxx{0}@a.example",
    "x@" + "y" * 300 + "{0}@a.example (a.example)",
    "x" * 300 + "{0}@a.example (a.example)",
)
# What names somebody without an @, whatever the case.
NAMED = (
    "user {0} unknown",
    "mailbox {0} is full.",
    "Mailbox {1} at a.example is full",
    "'{0}': no such user",
    "x500:/o=org/cn={0}",
    "/home/{0}/Maildir",
    "{0}",
    "mail for {0}; not for {0}: no",
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


@given(secrets, st.sampled_from(["domain", "hash"]))
def test_nobody_whom_the_words_are_about_is_named(secret: str, mode: Mode) -> None:
    """Peers leave the domain out where it is their own; longer words with the name in them are other words."""
    privacy = Privacy(mode=mode, key=KEY)
    for local in (secret, f"{secret}+list", f'"{secret}"', f"o'{secret}.x"):
        about = f"{local}@a.example"
        bare = local.strip('"')
        for words in NAMED:
            told = privacy.text(f"550 5.1.1 {words.format(bare, bare.upper())}", "", about)
            assert secret not in told.lower()
            assert told.startswith("550 5.1.1 ")
    assert f"not{secret}" == privacy.text(f"not{secret}", f"{secret}@a.example")


def test_under_a_hash_somebody_is_called_by_it() -> None:
    """So that an operator sees that the words are about the recipient."""
    privacy = Privacy(mode="hash", key=KEY)
    name = privacy.address("bob+x@a.example").partition("@")[0]
    assert f"user {name} unknown, {name}" == privacy.text("user bob unknown, BOB%2bX", "bob+x@a.example")
    assert "user *** unknown" == Privacy(mode="domain").text("user bob unknown", "bob@a.example")
    assert "user bob unknown" == Privacy().text("user bob unknown", "bob@a.example")


@pytest.mark.parametrize(
    "words", ["a@", "x", '"', '\\"', 'a"', "x ", "@ ", "x@[", '"a', "%25", "&#0", "a b@c.example "], ids=repr
)
def test_no_words_take_long(words: str) -> None:
    """Ten times as many take about ten times as long: whoever is at the other end chooses them."""
    privacy = Privacy(mode="hash", key=KEY)

    def took(count: int) -> float:
        began = time.process_time()
        privacy.text(words * count, "a@a.example", f"{'x' * 200}@a.example")
        return time.process_time() - began

    assert took(20_000) < 40 * max(took(2_000), 0.001)


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
        assert isinstance(privacy.text(text, text, f"{text}@a.example"), str)
