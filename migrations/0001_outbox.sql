-- The outbox of one application: the table, the function that writes it, what the relay reads it through.
-- `outboxd migrate --print` fills in what stands in braces; a line that begins with `--:` begins a step.

--: table
-- Debezium's five columns by name, then optional ones; the relay uses what it finds.
-- The numbers in `seq` are the relay's: nothing may insert or change them.
-- `payload` is json and not jsonb so that consumers get the text as it was written; NULL is a tombstone.
CREATE TABLE {table} (
    id               uuid{id_key} DEFAULT gen_random_uuid(),
    aggregatetype    varchar(255) NOT NULL,
    aggregateid      varchar(255) NOT NULL,
    type             varchar(255) NOT NULL,
    payload          json,
    headers          jsonb,
    topic            varchar(249),
    partitionkey     text,
    aggregateversion bigint,
    correlationid    text,
    causationid      text,
    traceparent      text,
    tracestate       text,
    occurredat       timestamptz,
    seq              bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME {sequence}){seq_key},
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(){sent_at_column}
){storage};{partitions}
{sent_at_index}COMMENT ON TABLE {table} IS 'Transactional outbox: INSERT here in the transaction that changes the data; outboxd publishes the row to Kafka.';
-- A table that begins empty has nothing that was ever published, so all of it is.
INSERT INTO outboxd.outbox (outbox, start) VALUES ({outbox}, 'all')
    ON CONFLICT (outbox) DO UPDATE SET start = coalesce(outboxd.outbox.start, 'all');

--: start
-- An empty table has nothing that was ever published, so all that comes is.
INSERT INTO outboxd.outbox (outbox, start) VALUES ({outbox}, 'all')
    ON CONFLICT (outbox) DO UPDATE SET start = coalesce(outboxd.outbox.start, 'all');

--: publish function
-- Writes one row with the caller's own rights and gives its id. What is not given is read from the
-- session: SET LOCAL outbox.correlationid = '...', likewise causationid, traceparent and tracestate.
CREATE OR REPLACE FUNCTION {publish_function}(
    aggregatetype    text,
    aggregateid      text,
    type             text,
    payload          json,
    headers          jsonb       DEFAULT NULL,
    topic            text        DEFAULT NULL,
    partitionkey     text        DEFAULT NULL,
    aggregateversion bigint      DEFAULT NULL,
    correlationid    text        DEFAULT NULL,
    causationid      text        DEFAULT NULL,
    traceparent      text        DEFAULT NULL,
    tracestate       text        DEFAULT NULL,
    occurredat       timestamptz DEFAULT NULL,
    id               uuid        DEFAULT gen_random_uuid()
) RETURNS uuid LANGUAGE plpgsql VOLATILE SECURITY INVOKER AS $outboxd$
#variable_conflict use_variable
BEGIN
    INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload, headers, topic, partitionkey, aggregateversion,
                         correlationid, causationid, traceparent, tracestate, occurredat)
    VALUES (id, aggregatetype, aggregateid, type, payload, headers, topic, partitionkey, aggregateversion,
            coalesce(correlationid, nullif(pg_catalog.current_setting('outbox.correlationid', true), '')),
            coalesce(causationid, nullif(pg_catalog.current_setting('outbox.causationid', true), '')),
            coalesce(traceparent, nullif(pg_catalog.current_setting('outbox.traceparent', true), '')),
            coalesce(tracestate, nullif(pg_catalog.current_setting('outbox.tracestate', true), '')),
            occurredat);
    RETURN id;
END
$outboxd$;
-- A new function belongs to PUBLIC else.
REVOKE ALL ON FUNCTION {publish_function}(
    text, text, text, json, jsonb, text, text, bigint, text, text, text, text, timestamptz, uuid
) FROM PUBLIC;

--: publication
-- Never DELETE: what the relay and others remove does not come back through the stream. UPDATE where a row's own
-- transaction may change it, unless marks are changes, too, or the table has no replica identity.
CREATE PUBLICATION {publication} FOR TABLE {table} WITH (publish = '{operations}', publish_via_partition_root = true);

--: publication table
ALTER PUBLICATION {publication} ADD TABLE {table};

--: publication options
ALTER PUBLICATION {publication} SET (publish = '{operations}', publish_via_partition_root = true);

--: read again
-- A new slot does not bring the rows that were committed before it.
UPDATE outboxd.outbox SET caught_up = false WHERE outbox = {state_key};

--: claim
-- The slot is this outbox's, unless one of that name stands already.
INSERT INTO outboxd.slot (slot, outbox, publication)
SELECT {slot}, {state_key}, {publication_name}{claim_condition}
    ON CONFLICT (slot) DO NOTHING;

--: slot
-- After the publication: a slot that is older than its publication cannot see it. Standbys keep it from PostgreSQL 17 on.
-- Not inside DO or a function: PostgreSQL 15 and older lose the caller's snapshot when another transaction alters tables.
SELECT pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput'{slot_options});

--: nothing before
-- Nothing tells the order of this table's rows but the stream. An empty one that nobody writes to has none that the slot leaves out.
DO $outboxd$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {slot})
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE mode = 'RowExclusiveLock'
            AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
            AND (relation = {table_literal}::regclass
                OR relation IN (SELECT relid FROM pg_catalog.pg_partition_tree({table_literal}))))
    THEN
        UPDATE outboxd.outbox SET caught_up = true
            WHERE outbox = {outbox} AND start IS NOT NULL AND NOT EXISTS (SELECT FROM {table});
    END IF;
END
$outboxd$;
