-- The relay's own state: everything a restart needs. One row or set of rows for each outbox table.
CREATE SCHEMA IF NOT EXISTS outboxd;

CREATE TABLE IF NOT EXISTS outboxd.schema_version (
    version integer PRIMARY KEY
);

-- What is known of an outbox: the start decision, the identity of its numbers, what was skipped.
CREATE TABLE IF NOT EXISTS outboxd.outbox (
    outbox            text PRIMARY KEY,             -- schema.table
    start             text CHECK (start IN ('all', 'now')),
    caught_up         boolean NOT NULL DEFAULT false, -- the rows that stood before the slot were read
    generation        integer NOT NULL DEFAULT 1,
    skipped           int8multirange NOT NULL DEFAULT '{}',
    start_lsn         pg_lsn,                       -- bounds the commits of the rows that `now` skipped
    system_identifier text,
    timeline          integer,
    database          text,
    table_oid         oid,
    table_filenodes   oid[],
    sequence_filenode oid,
    slot              text,                         -- through which the rows were read last
    publication       text,
    mark              text,                         -- how rows were marked last, and read
    mode              text,
    at                timestamptz NOT NULL DEFAULT clock_timestamp()
);

ALTER TABLE outboxd.outbox ADD COLUMN IF NOT EXISTS start_lsn pg_lsn;

-- The rows that the start with `now` skipped, where numbers don't tell them.
CREATE TABLE IF NOT EXISTS outboxd.skipped (
    outbox text NOT NULL,
    id     text NOT NULL,
    PRIMARY KEY (outbox, id)
);

-- Which slots are ours, and for which outbox: a name in a space that others share is taken only if it stands here.
CREATE TABLE IF NOT EXISTS outboxd.slot (
    slot        text PRIMARY KEY,
    outbox      text NOT NULL,
    publication text,
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who publishes an outbox. A holder renews; nobody else may take it while `renewals` moves.
CREATE TABLE IF NOT EXISTS outboxd.lease (
    outbox   text PRIMARY KEY,
    owner    text NOT NULL,
    epoch    bigint NOT NULL,
    renewals bigint NOT NULL,
    released boolean NOT NULL,
    ttl      interval NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The numbers that were sent, exactly: one row for each checkpoint, folded into one row a segment
-- of a million numbers.
CREATE TABLE IF NOT EXISTS outboxd.ledger (
    id         bigint GENERATED ALWAYS AS IDENTITY,
    outbox     text NOT NULL,
    generation integer NOT NULL,
    segment    bigint NOT NULL,                     -- seq / 1,000,000
    sent       int8multirange NOT NULL,
    high_lsn   pg_lsn NOT NULL,                     -- bounds the commits that `sent` covers
    last_seq   bigint NOT NULL,
    last_id    text NOT NULL,
    closed     boolean NOT NULL DEFAULT false,
    retired    boolean NOT NULL DEFAULT false,
    epoch      bigint NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (outbox, generation, segment, id)
);

-- Beside a stream with marks in the rows: which rows were marked, until the position that may be confirmed stands behind
-- them. That a row does not stand in the table says nothing: it may be invisible, or somebody may have deleted it.
CREATE TABLE IF NOT EXISTS outboxd.marked (
    outbox    text NOT NULL,
    id        bigint GENERATED ALWAYS AS IDENTITY,
    numbers   int8multirange,                       -- or, where numbers are not unique or there are none:
    ids       text[],
    seqs      bigint[],
    owed_ids  text[],                               -- acknowledged, and their commit was not visible yet
    owed_seqs bigint[],
    owed_xids bigint[],
    high_lsn  pg_lsn NOT NULL,                      -- bounds the commits of these rows
    resolved  pg_lsn NOT NULL,                      -- every commit before it is marked or held
    epoch     bigint NOT NULL,
    PRIMARY KEY (outbox, id)
);

-- Outboxes whose rows were polled since a slot was read: what the slot still holds of them was published from the table.
CREATE TABLE IF NOT EXISTS outboxd.polled (
    outbox text PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Aggregates and topics none of whose rows is published, and the numbers of the rows that wait.
CREATE TABLE IF NOT EXISTS outboxd.blocked (
    outbox        text NOT NULL,
    key           text NOT NULL,                    -- a digest of what is blocked
    kind          text NOT NULL CHECK (kind IN ('aggregate', 'topic')),
    aggregatetype text,
    aggregateid   text,
    topic         text,
    generation    integer NOT NULL,
    held          int8multirange NOT NULL DEFAULT '{}',
    row_seq       bigint,                           -- the first row, which is at fault if an aggregate is blocked
    row_id        text NOT NULL,
    reason        text NOT NULL,
    error         text NOT NULL,
    attempts      integer NOT NULL DEFAULT 1,
    policy        text NOT NULL CHECK (policy IN ('block', 'follow')),
    state         text NOT NULL DEFAULT 'blocked' CHECK (state IN ('blocked', 'retry', 'skip', 'released')),
    actor         text,                             -- who asked for the release, and why
    note          text,
    since         timestamptz NOT NULL DEFAULT clock_timestamp(),
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    epoch         bigint NOT NULL,
    PRIMARY KEY (outbox, key)
);

-- Rows kept whole: dead letters, and held rows that do not stand in the outbox table.
CREATE TABLE IF NOT EXISTS outboxd.kept (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    outbox        text NOT NULL,
    key           text NOT NULL,                    -- of the row, so that it is kept once
    blocked_key   text,                             -- the entry of outboxd.blocked that it waits behind
    state         text NOT NULL CHECK (state IN ('held', 'dead', 'replay', 'replayed', 'discarded')),
    generation    integer NOT NULL,
    seq           bigint,
    row_id        text NOT NULL,
    aggregatetype text,
    aggregateid   text,
    columns       text[],
    fields        bytea[],
    left_out      jsonb,                            -- sizes of values too large to be read, by column
    reason        text NOT NULL,
    error         text NOT NULL,
    attempts      integer NOT NULL DEFAULT 1,
    actor         text,
    note          text,
    since         timestamptz NOT NULL DEFAULT clock_timestamp(),
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    epoch         bigint NOT NULL,
    UNIQUE (outbox, key)
);

-- Earlier versions knew a slot that is read without a mark by its lease alone.
INSERT INTO outboxd.slot (slot, outbox)
SELECT substring(outbox FROM '#([a-z0-9_]+)$'), min(regexp_replace(outbox, '#[a-z0-9_]+$', ''))
FROM outboxd.lease WHERE outbox ~ '#[a-z0-9_]+$' AND NOT EXISTS (SELECT FROM outboxd.slot)
GROUP BY 1 HAVING count(*) = 1;

-- What earlier versions made lacks it. Every table of ours has a primary key: a publication of all tables, which anybody
-- may make, lets no other be changed.
ALTER TABLE outboxd.ledger ADD COLUMN IF NOT EXISTS id bigint GENERATED ALWAYS AS IDENTITY;
DO $outboxd$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'outboxd.outbox'::regclass AND attname = 'mark') THEN
        ALTER TABLE outboxd.outbox ADD COLUMN mark text, ADD COLUMN mode text;
        EXECUTE $mark$
            UPDATE outboxd.outbox o SET mark = CASE
                WHEN EXISTS (SELECT FROM outboxd.ledger l WHERE l.outbox = o.outbox) THEN 'ledger'
                WHEN EXISTS (SELECT FROM outboxd.slot s WHERE s.outbox = o.outbox)
                     AND NOT EXISTS (SELECT FROM outboxd.lease l WHERE l.outbox = o.outbox) THEN 'none'
            END
        $mark$;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = 'outboxd.ledger'::regclass AND indisprimary) THEN
        ALTER TABLE outboxd.ledger ADD PRIMARY KEY (outbox, generation, segment, id);
        DROP INDEX IF EXISTS outboxd.ledger_by_segment;
    END IF;
END $outboxd$;

-- What somebody dropped.
DO $outboxd$ DECLARE name text; columns text; BEGIN
    FOR name, columns IN VALUES
        ('schema_version', 'version'), ('outbox', 'outbox'), ('skipped', 'outbox, id'), ('slot', 'slot'),
        ('lease', 'outbox'), ('marked', 'outbox, id'), ('polled', 'outbox'), ('blocked', 'outbox, key'), ('kept', 'id')
    LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = ('outboxd.' || name)::regclass AND indisprimary) THEN
            EXECUTE format('ALTER TABLE outboxd.%I ADD PRIMARY KEY (%s)', name, columns);
        END IF;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_index
                   WHERE indrelid = 'outboxd.kept'::regclass AND indisunique AND NOT indisprimary) THEN
        ALTER TABLE outboxd.kept ADD UNIQUE (outbox, key);
    END IF;
END $outboxd$;

INSERT INTO outboxd.schema_version (version)
SELECT 1 WHERE NOT EXISTS (SELECT FROM outboxd.schema_version);

--: index
CREATE INDEX IF NOT EXISTS kept_by_state ON outboxd.kept (outbox, state, generation, seq NULLS FIRST, id);
