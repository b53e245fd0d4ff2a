"""Bodies freed with their last delivery, what is remembered of next hops, and MTA-STS policies.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# A recipient whose delivery has not ended keeps the body. Recipients are named rather than counted: one that ends
# twice, since a crash doubled its delivery, must not take the body from another. Those that have ended stay named as
# long as the body's row: who is not named at all has not ended, and its mail must not be taken for a double.
BODIES = """
CREATE TABLE body_uses (
    body_id    text NOT NULL,
    message_id text NOT NULL,
    recipient  text NOT NULL,
    ended_at   timestamptz,          -- NULL: its delivery has not ended
    PRIMARY KEY (body_id, message_id, recipient)
);
-- A body that was freed leaves its row: a doubled delivery that comes later finds that it has ended, not that its body
-- is missing.
ALTER TABLE bodies ALTER COLUMN body DROP NOT NULL;
ALTER TABLE bodies ADD COLUMN freed_at timestamptz;
-- All who need it were named when it was stored: only then the last one frees it. Bodies of a front door, which may be
-- named by messages still to come, and those of the release before are pruned by age as before.
ALTER TABLE bodies ADD COLUMN named boolean NOT NULL DEFAULT false;
"""

HOPS = """
CREATE TABLE next_hops (
    hop        text NOT NULL,        -- a URL, or a host and its port
    state      text NOT NULL CHECK (state IN ('without mxdeliv', 'suspended')),
    until      timestamptz NOT NULL, -- in the past: it was true and is no longer
    reason     text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (hop, state)
);
CREATE INDEX next_hops_changed ON next_hops (changed_at);
"""

MTA_STS = """
CREATE TABLE mta_sts_policies (
    domain     text PRIMARY KEY,
    id         text NOT NULL,        -- of the TXT record that announced it (RFC 8461 3.1)
    policy     text NOT NULL,        -- as it was fetched
    fetched_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
"""


def upgrade() -> None:
    """Add what is new; rooms of the release before go on without it."""
    for part in (BODIES, HOPS, MTA_STS):
        op.execute(part)


def downgrade() -> None:
    """Go back; bodies that were freed are gone, and nothing needs them."""
    op.execute("DROP TABLE body_uses, next_hops, mta_sts_policies")
    op.execute("DELETE FROM bodies WHERE body IS NULL")
    op.execute("ALTER TABLE bodies ALTER COLUMN body SET NOT NULL, DROP COLUMN freed_at, DROP COLUMN named")
