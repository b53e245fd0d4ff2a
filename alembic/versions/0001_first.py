"""Rules with their history, routers, waiting mail and large bodies.

Revision ID: 0001
Revises:
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

RULES = """
CREATE TABLE rulebook (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint NOT NULL DEFAULT 0,  -- taken by every change; the row lock puts versions in commit order
    released bigint NOT NULL DEFAULT 0   -- the version that routers are to apply
);
INSERT INTO rulebook DEFAULT VALUES;

CREATE TABLE dns_overrides (
    lookup_key  text PRIMARY KEY
        CHECK (lookup_key <> '' AND (lookup_key = lower(lookup_key) OR lookup_key LIKE '[IPv6:%')),
    target_host text NOT NULL CHECK (target_host ~ '^[^[:space:],]+(,[^[:space:],]+)*$'),
    comment     text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    transport   text NOT NULL DEFAULT 'auto' CHECK (transport IN ('auto', 'https', 'smtp')),
    tls         text CHECK (tls IN ('verify', 'encrypt', 'none')),
    expires_at  timestamptz CHECK (expires_at BETWEEN '2000-01-01' AND '9000-01-01'),
    enabled     boolean NOT NULL DEFAULT true,
    share       smallint CHECK (share BETWEEN 1 AND 100),
    version     bigint NOT NULL DEFAULT 0
);

CREATE TABLE dns_override_changes (
    version    bigint NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    actor      text NOT NULL,
    action     text NOT NULL,
    lookup_key text NOT NULL,
    before     jsonb,
    after      jsonb,
    PRIMARY KEY (version, lookup_key)
);
CREATE INDEX dns_override_changes_by_key ON dns_override_changes (lookup_key, version);
"""

# Every change of a row is versioned and kept here, whoever makes it: this program, or a person with psql. All changes
# of one transaction share one version. A row that is written twice in one transaction keeps its first `before`.
TRIGGER = """
CREATE FUNCTION dns_overrides_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    taken bigint := nullif(current_setting('pushpush.version', true), '')::bigint;
BEGIN
    IF taken IS NULL THEN
        UPDATE rulebook SET version = version + 1 RETURNING version INTO taken;
        PERFORM set_config('pushpush.version', taken::text, true);
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN old;
    ELSIF TG_OP = 'UPDATE' AND new.lookup_key <> old.lookup_key THEN
        RAISE EXCEPTION 'a lookup_key cannot be renamed: remove the rule and make a new one';
    END IF;
    new.version := taken;
    new.updated_at := now();
    RETURN new;
END $$;

CREATE FUNCTION dns_overrides_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO dns_override_changes (version, actor, action, lookup_key, before, after) VALUES (
        current_setting('pushpush.version')::bigint,
        coalesce(nullif(current_setting('pushpush.actor', true), ''), session_user::text),
        CASE TG_OP WHEN 'DELETE' THEN 'remove' WHEN 'INSERT' THEN 'set' ELSE 'change' END,
        CASE TG_OP WHEN 'DELETE' THEN old.lookup_key ELSE new.lookup_key END,
        CASE TG_OP WHEN 'INSERT' THEN NULL ELSE to_jsonb(old) END,
        CASE TG_OP WHEN 'DELETE' THEN NULL ELSE to_jsonb(new) END
    ) ON CONFLICT (version, lookup_key) DO UPDATE SET action = excluded.action, after = excluded.after;
    RETURN NULL;
END $$;

CREATE TRIGGER dns_overrides_stamp BEFORE INSERT OR DELETE ON dns_overrides
    FOR EACH ROW EXECUTE FUNCTION dns_overrides_stamp();
CREATE TRIGGER dns_overrides_stamp_update BEFORE UPDATE ON dns_overrides
    FOR EACH ROW WHEN (old.* IS DISTINCT FROM new.*) EXECUTE FUNCTION dns_overrides_stamp();
CREATE TRIGGER dns_overrides_record AFTER INSERT OR DELETE ON dns_overrides
    FOR EACH ROW EXECUTE FUNCTION dns_overrides_record();
CREATE TRIGGER dns_overrides_record_update AFTER UPDATE ON dns_overrides
    FOR EACH ROW WHEN (old.* IS DISTINCT FROM new.*) EXECUTE FUNCTION dns_overrides_record();

CREATE FUNCTION dns_overrides_no_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'dns_overrides cannot be truncated, since no history would be kept: use DELETE';
END $$;
CREATE TRIGGER dns_overrides_no_truncate BEFORE TRUNCATE ON dns_overrides
    FOR EACH STATEMENT EXECUTE FUNCTION dns_overrides_no_truncate();
"""

ROUTERS = """
CREATE TABLE routers (
    name       text PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    applied    bigint NOT NULL DEFAULT 0  -- from now on this router publishes nothing under rules older than this
);
"""

WAITING = """
CREATE TABLE deferred (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id      text NOT NULL,
    mail_from       text NOT NULL,
    rcpt_to         text[] NOT NULL,
    domain          text NOT NULL,
    target          text NOT NULL,  -- where the last attempt went, "" for the domain's own MX hosts
    accepted_at     timestamptz NOT NULL,
    deferred_at     timestamptz NOT NULL DEFAULT now(),
    next_attempt_at timestamptz NOT NULL,
    attempts        integer NOT NULL,
    reply           text NOT NULL,
    size            bigint NOT NULL,
    delivery        bytea NOT NULL  -- the wire form, published as it is when it is due
);
ALTER TABLE deferred ALTER COLUMN delivery SET STORAGE EXTERNAL;
CREATE INDEX deferred_due ON deferred (next_attempt_at, id);
CREATE INDEX deferred_by_domain ON deferred (domain, id);
CREATE INDEX deferred_by_message ON deferred (message_id);

CREATE TABLE bodies (
    id         text PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    body       bytea NOT NULL
);
ALTER TABLE bodies ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX bodies_by_age ON bodies (created_at);
"""


def upgrade() -> None:
    """Make the tables."""
    for part in (RULES, TRIGGER, ROUTERS, WAITING):
        op.execute(part)


def downgrade() -> None:
    """Refuse: it would throw waiting mail away."""
    raise NotImplementedError("the first migration cannot be undone: waiting mail would be lost")
