"""The audit log: everything once, in order, however long it is."""

import pytest

from shared.mail.rule import make_rule
from shared.store.audit import Audit, Cursor
from shared.store.overrides import Overrides
from shared.store.pool import Pool


async def test_acts_and_changes_of_rules_together(pool: Pool) -> None:
    """The latest first; a change of many rules is one line; a page begins where the one before ended."""
    audit, rules = Audit(pool), Overrides(pool)
    for number in range(5):
        await audit.record(actor="ann", via="cli", action="queue retry", object=f"mail {number}")
        await rules.set(make_rule("a.example", f"b{number}.example"), actor="bob", release=True)
    many = {f"k{number}.example": make_rule(f"k{number}.example", "b.example") for number in range(1_000)}
    await rules.apply(many, actor="bob", release=True, action="import")
    await audit.record(actor="a\x00\ud800", via="api", action="dead raw", object="7", detail="x" * 5_000)
    whole = await audit.page()
    assert [
        ("a??", "dead raw", "7"),
        ("bob", "rule import", "1000 rules"),
        *[
            each
            for number in reversed(range(5))
            for each in (
                ("bob", f"rule {'change' if number else 'set'}", "a.example"),
                ("ann", "queue retry", f"mail {number}"),
            )
        ],
    ] == [(each.actor, each.action, each.object) for each in whole]
    assert "b3.example -> b4.example, version 5" == whole[2].detail
    paged, place = [], None
    while found := await audit.page(place, limit=3):
        paged += found
        place = Cursor.read(found[-1].cursor.text)
    assert whole == paged


@pytest.mark.parametrize("text", ["", "-", "1", "1-2-3", "1-x", "-1-2", f"{2**63}-1", "9" * 30 + "-1"])
def test_a_place_that_is_none(text: str) -> None:
    """It came from a link that somebody wrote."""
    with pytest.raises(ValueError, match="no place"):
        Cursor.read(text)
