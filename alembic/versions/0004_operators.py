"""What operators see: events and traffic, dead letters, tokens and sessions, the audit log; waiting mail by more keys.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# One row for each recipient and attempt, and for what else happens to a recipient. The journal makes a partition for
# each day, and drops those that are too old. Addresses are as the privacy setting has them.
EVENTS = """
CREATE TABLE events (
    at          timestamptz NOT NULL,
    kind        text NOT NULL,
    message_id  text NOT NULL,             -- the queue id
    recipient   text NOT NULL,
    domain      text NOT NULL,
    room        text NOT NULL,             -- router, https, smtp, or operator
    attempt     integer NOT NULL DEFAULT 0,
    rule        text NOT NULL DEFAULT '',  -- the lookup key; '' for direct federation
    version     bigint NOT NULL DEFAULT 0, -- of the rules that routed it
    target      text NOT NULL DEFAULT '',
    mta         text NOT NULL DEFAULT '',  -- the host that spoke
    code        integer NOT NULL DEFAULT 0,
    enhanced    text NOT NULL DEFAULT '',
    reply       text NOT NULL DEFAULT '',
    ms          integer NOT NULL DEFAULT 0,
    size        bigint NOT NULL DEFAULT 0,
    until       timestamptz,               -- when it is tried next
    accepted_at timestamptz,               -- when the fleet took it
    sender      text,                      -- of routed events only; '' is the null reverse-path
    header_id   text,                      -- of routed events only: the Message-ID field
    report      text NOT NULL DEFAULT '',  -- the id of the report that told the sender
    actor       text NOT NULL DEFAULT ''   -- who did it, where it was a person
) PARTITION BY RANGE (at);
CREATE INDEX events_by_message ON events (message_id, at);
CREATE INDEX events_by_recipient ON events (recipient, at);
CREATE INDEX events_by_sender ON events (sender, at) WHERE sender IS NOT NULL;
CREATE INDEX events_by_time ON events (at, kind);
CREATE INDEX events_by_header_id ON events (header_id, at) WHERE header_id IS NOT NULL;

-- Which batches of events are recorded: one that comes twice, after a crash, counts once. What a source says it has
-- emitted and what was recorded of it tell how much was lost on the way.
CREATE TABLE event_batches (
    source      text NOT NULL,             -- one process
    number      bigint NOT NULL,
    events      integer NOT NULL,
    emitted     bigint NOT NULL,           -- events of this source up to the end of this batch, lost ones too
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, number)
);
CREATE INDEX event_batches_by_age ON event_batches (recorded_at);

CREATE TABLE traffic (
    hour      timestamptz NOT NULL,        -- its beginning
    domain    text NOT NULL,               -- the recipients'
    transport text NOT NULL,
    delivered bigint NOT NULL DEFAULT 0,
    deferred  bigint NOT NULL DEFAULT 0,
    postponed bigint NOT NULL DEFAULT 0,
    fallback  bigint NOT NULL DEFAULT 0,
    failed    bigint NOT NULL DEFAULT 0,
    bounced   bigint NOT NULL DEFAULT 0,
    dropped   bigint NOT NULL DEFAULT 0,
    removed   bigint NOT NULL DEFAULT 0,
    bytes     bigint NOT NULL DEFAULT 0,   -- delivered
    ms        bigint NOT NULL DEFAULT 0,   -- of all attempts together
    PRIMARY KEY (hour, domain, transport)
);
CREATE INDEX traffic_by_domain ON traffic (domain, hour);
-- The same over all domains, so that a day is some rows to read and not those of every domain.
CREATE TABLE traffic_hours (LIKE traffic INCLUDING DEFAULTS);
ALTER TABLE traffic_hours DROP COLUMN domain, ADD PRIMARY KEY (hour, transport);

CREATE TABLE event_minutes (
    minute timestamptz NOT NULL,           -- its beginning
    kind   text NOT NULL,
    events bigint NOT NULL,
    PRIMARY KEY (minute, kind)
);
"""

DEAD = """
CREATE TABLE dead_letters (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    taken_at     timestamptz NOT NULL DEFAULT now(),
    reason       text NOT NULL,
    queue        text NOT NULL,            -- where it could not be read; '' when that is not known
    message_id   text NOT NULL,
    content_type text,
    headers      bytea NOT NULL,           -- all of them, as they came, in msgpack
    size         bigint NOT NULL,
    digest       bytea NOT NULL,           -- of headers and data; '' once the broker has forgotten the letter
    data         bytea NOT NULL
);
ALTER TABLE dead_letters ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX dead_letters_by_digest ON dead_letters (digest);
"""

ACCESS = """
CREATE TABLE tokens (
    id         text PRIMARY KEY,           -- public: names the token in lists
    name       text NOT NULL UNIQUE,       -- what the history shows
    role       text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    hash       bytea NOT NULL UNIQUE,      -- SHA-256 of the secret, which has 256 bits of its own
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL,
    expires_at timestamptz,
    used_at    timestamptz,
    revoked_at timestamptz
);
CREATE TABLE sessions (
    hash       bytea PRIMARY KEY,          -- SHA-256 of the cookie
    token_id   text REFERENCES tokens ON DELETE CASCADE,  -- NULL: opened with ADMIN_TOKEN, whose hash `bootstrap` is
    bootstrap  bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    CHECK ((token_id IS NULL) <> (bootstrap IS NULL))
);
CREATE TABLE login_failures (
    address text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX login_failures_by_address ON login_failures (address, at);
CREATE TABLE audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    actor  text NOT NULL,
    via    text NOT NULL,                  -- cli, panel, api
    action text NOT NULL,                  -- such as 'queue bounce'
    object text NOT NULL,                  -- on what
    detail text NOT NULL DEFAULT ''
);
CREATE INDEX audit_by_age ON audit (at);
CREATE INDEX dns_override_changes_by_age ON dns_override_changes (at);
"""

WAITING = """
ALTER TABLE deferred ADD COLUMN put_off text;  -- the transport that had no room for it; NULL: the attempt is over
CREATE INDEX deferred_by_target ON deferred (target, id);
CREATE INDEX deferred_by_age ON deferred (accepted_at, id);
"""


def upgrade() -> None:
    """Add what is new; rooms of the release before go on without it."""
    for part in (EVENTS, DEAD, ACCESS, WAITING):
        op.execute(part)


def downgrade() -> None:
    """Go back, unless dead letters would be lost: they are kept nowhere else."""
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM dead_letters) THEN RAISE EXCEPTION "
        "'dead letters would be lost: requeue or discard them first'; END IF; END $$"
    )
    op.execute("DROP TABLE events, event_batches, event_minutes, traffic, traffic_hours")
    op.execute("DROP TABLE dead_letters, sessions, tokens, login_failures, audit")
    op.execute("DROP INDEX dns_override_changes_by_age, deferred_by_target, deferred_by_age")
    op.execute("ALTER TABLE deferred DROP COLUMN put_off")
