-- One view for each outbox: every row, whether it was sent and when, whatever the mark.
-- The relay never reads it; it is for people.

--: ledger
-- The table is known by its oid, which a renaming does not change, once a relay has opened it.
-- `sent_at` is the time of the checkpoint that recorded the row, of its segment once the ledger was folded.
DROP VIEW IF EXISTS {status_view};
CREATE VIEW {status_view} AS
SELECT ledger.at IS NOT NULL AS sent, ledger.at AS sent_at, {status_columns}
FROM {table} o
LEFT JOIN LATERAL (
    SELECT min(l.at) AS at
    FROM outboxd.ledger l
    JOIN outboxd.outbox b ON b.outbox = l.outbox AND b.generation = l.generation
    WHERE coalesce(b.table_oid = {table_literal}::pg_catalog.regclass, b.outbox = {outbox}) AND l.segment = {segment} AND l.sent @> o.{seq}::bigint
) ledger ON true;
COMMENT ON VIEW {status_view} IS {status_comment};

--: sent_at
DROP VIEW IF EXISTS {status_view};
CREATE VIEW {status_view} AS
SELECT o.{sent_at} IS NOT NULL AS sent, o.{sent_at} AS sent_at, {status_columns}
FROM {table} o;
COMMENT ON VIEW {status_view} IS {status_comment};

--: delete
-- A row that was sent is gone: what stands in the table was not.
DROP VIEW IF EXISTS {status_view};
CREATE VIEW {status_view} AS
SELECT false AS sent, NULL::timestamptz AS sent_at, {status_columns}
FROM {table} o;
COMMENT ON VIEW {status_view} IS {status_comment};

--: none
-- Nothing is recorded of single rows: only the slot's position is known.
DROP VIEW IF EXISTS {status_view};
CREATE VIEW {status_view} AS
SELECT NULL::boolean AS sent, NULL::timestamptz AS sent_at, {status_columns}
FROM {table} o;
COMMENT ON VIEW {status_view} IS {status_comment};
