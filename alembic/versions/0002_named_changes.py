"""Changes named by what made them (import, rollback, expire, ...), ends of rules, and the history that a router has.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ACTION = """
CREATE OR REPLACE FUNCTION dns_overrides_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO dns_override_changes (version, at, actor, action, lookup_key, before, after) VALUES (
        current_setting('pushpush.version')::bigint,
        clock_timestamp(),  -- not that of the transaction, which may have begun before the version before this one
        coalesce(nullif(current_setting('pushpush.actor', true), ''), session_user::text),
        coalesce(
            nullif(current_setting('pushpush.action', true), ''),
            CASE TG_OP WHEN 'DELETE' THEN 'remove' WHEN 'INSERT' THEN 'set' ELSE 'change' END
        ),
        CASE TG_OP WHEN 'DELETE' THEN old.lookup_key ELSE new.lookup_key END,
        CASE TG_OP WHEN 'INSERT' THEN NULL ELSE to_jsonb(old) END,
        CASE TG_OP WHEN 'DELETE' THEN NULL ELSE to_jsonb(new) END
    ) ON CONFLICT (version, lookup_key) DO UPDATE SET action = excluded.action, after = excluded.after;
    RETURN NULL;
END $$;
"""

# Whoever changes rules takes the lock of `rulebook` before any row's, as the program does; a person with psql who took
# them the other way round would meet it in a deadlock.
LOCK = """
CREATE FUNCTION dns_overrides_one_writer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM rulebook FOR UPDATE;
    RETURN NULL;
END $$;
CREATE TRIGGER dns_overrides_one_writer BEFORE INSERT OR UPDATE OR DELETE ON dns_overrides
    FOR EACH STATEMENT EXECUTE FUNCTION dns_overrides_one_writer();
"""

COLUMNS = """
CREATE INDEX dns_overrides_ends ON dns_overrides (expires_at) WHERE expires_at IS NOT NULL;
-- When the change of the applied version was made: a database that lost commits and took others counts to the same
-- numbers, but not at the same times. NULL: there was no change yet, or an older router wrote the row.
ALTER TABLE routers ADD COLUMN mark timestamptz;
-- A router whose queue of events has its name can be fenced off; an older one cannot, and is waited for.
ALTER TABLE routers ADD COLUMN own_queue boolean NOT NULL DEFAULT false;
"""


def upgrade() -> None:
    """Add what is new; routers of the release before go on with it."""
    for part in (ACTION, LOCK, COLUMNS):
        op.execute(part)


def downgrade() -> None:
    """Go back; nothing is lost but the marks."""
    op.execute("DROP INDEX dns_overrides_ends")
    op.execute("DROP FUNCTION dns_overrides_one_writer CASCADE")
    op.execute("ALTER TABLE routers DROP COLUMN mark, DROP COLUMN own_queue")
