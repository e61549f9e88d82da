//! The statements of retention on one table.

use super::row_age::Age;
use crate::mark::ledger::{LEASE, number_sql, segment_numbers_sql, segment_sql};
use crate::postgres::catalog::Table;

/// Written once: names and types don't change while a session runs.
#[derive(Clone, Debug)]
pub(super) struct Statements {
    pub(super) bounds: String,
    pub(super) remove: String,
    pub(super) reopen: String,
}

impl Statements {
    pub(super) fn new(table: &Table, age: Age) -> Self {
        let name = table.layout.sql_name();
        let same = match (age, table.sequence()) {
            (Age::Created, Some(sequence)) => format!(
                "SELECT FROM pg_catalog.pg_class c, {} s WHERE c.oid = {} AND c.relfilenode = {} AND s.last_value >= $6",
                sequence.name, sequence.oid, sequence.filenode
            ),
            // A mark that stands in the row is the row's.
            _ => "SELECT".to_owned(),
        };
        let sent = match age {
            Age::Created => sent_numbers(),
            Age::Sent => "SELECT NULL::int8multirange AS numbers".to_owned(),
        };
        let names = &table.layout.names;
        let (seq, aged) = (names.sql("seq"), names.sql(age.column()));
        let (standing, gone) = (numbers(&format!("o.{seq}")), numbers("o.seq"));
        let kept = kept_numbers();
        Self {
            bounds: format!(
                "SELECT (SELECT {seq}::int8 FROM {name} WHERE {seq} >= $1::int8 ORDER BY {seq} LIMIT 1), \
                 (SELECT max({seq})::int8 FROM {name})"
            ),
            remove: format!(
                "WITH {LEASE}, same AS ({same}), \
                 asked AS MATERIALIZED (SELECT $4::text::int8multirange AS numbers), \
                 kept AS MATERIALIZED ({kept}), sent AS MATERIALIZED ({sent}), \
                 old AS (SELECT pg_catalog.now() - pg_catalog.make_interval(secs => $7) AS until), \
                 gone AS (DELETE FROM {name} o USING lease, same, asked, kept, old \
                   WHERE o.{seq} BETWEEN $5::int8 AND $6::int8 AND asked.numbers @> o.{seq}::int8 \
                   AND NOT kept.numbers @> o.{seq}::int8 AND o.{aged} < old.until \
                   AND o.{seq} < (SELECT max({seq}) FROM {name}) RETURNING o.{seq}::int8 AS seq), \
                 standing AS (SELECT {standing} AS numbers, coalesce(bool_or(o.{aged} >= old.until), false) AS has_young \
                   FROM {name} o, asked, old WHERE o.{seq} BETWEEN $5::int8 AND $6::int8 AND asked.numbers @> o.{seq}::int8), \
                 removed AS (SELECT {gone} AS numbers FROM gone o) \
                 SELECT EXISTS (SELECT FROM lease) AS is_leader, EXISTS (SELECT FROM same) AS is_same, \
                   removed.numbers::text AS gone, standing.numbers::text AS standing, standing.has_young, \
                   coalesce(removed.numbers - sent.numbers, '{{}}')::text AS missed FROM removed, standing, sent"
            ),
            reopen: format!(
                "WITH {LEASE} UPDATE outboxd.ledger l SET closed = false FROM lease \
                 WHERE l.outbox = $1 AND l.generation = $3 AND l.closed AND $4::text::int8multirange && {}",
                segment_numbers_sql("l.segment")
            ),
        }
    }
}

fn numbers(number: &str) -> String {
    format!("coalesce(range_agg({}), '{{}}')", number_sql(number))
}

/// Dead letters are marked where marks stand in the rows.
fn kept_numbers() -> String {
    format!(
        "SELECT {} AS numbers FROM outboxd.kept WHERE outbox = $1 AND generation = $3 \
         AND state IN ('held', 'dead', 'replay', 'discarded') AND seq BETWEEN $5::int8 AND $6::int8",
        numbers("seq")
    )
}

fn sent_numbers() -> String {
    format!(
        "SELECT coalesce(range_agg(r), '{{}}') AS numbers FROM asked, outboxd.ledger l, \
         unnest(l.sent * asked.numbers) r WHERE l.outbox = $1 AND l.generation = $3 \
         AND l.segment BETWEEN {} AND {}",
        segment_sql("$5"),
        segment_sql("$6")
    )
}
