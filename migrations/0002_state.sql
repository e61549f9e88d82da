-- The relay's own state: everything a restart needs. One row or set of rows for each outbox table.
CREATE SCHEMA IF NOT EXISTS outboxd;

CREATE TABLE IF NOT EXISTS outboxd.schema_version (
    version integer NOT NULL
);

-- What is known of an outbox: the start decision, the identity of its numbers, what was skipped.
CREATE TABLE IF NOT EXISTS outboxd.outbox (
    outbox            text PRIMARY KEY,             -- schema.table
    start             text CHECK (start IN ('all', 'now')),
    caught_up         boolean NOT NULL DEFAULT false, -- the rows that stood before the slot were read
    generation        integer NOT NULL DEFAULT 1,
    skipped           int8multirange NOT NULL DEFAULT '{}',
    skipped_ids       text[] NOT NULL DEFAULT '{}',
    system_identifier text,
    timeline          integer,
    database          text,
    table_oid         oid,
    table_filenodes   oid[],
    sequence_filenode oid,
    at                timestamptz NOT NULL DEFAULT clock_timestamp()
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
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS ledger_by_segment ON outboxd.ledger (outbox, generation, segment);

INSERT INTO outboxd.schema_version (version)
SELECT 1 WHERE NOT EXISTS (SELECT FROM outboxd.schema_version);
