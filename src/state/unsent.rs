//! Which rows of the table were not sent, and how old they are: the one question behind every lag that is shown.
//!
//! A row counts while it stands in the table and is neither sent, nor skipped, nor a dead letter. Reads only, and counts up
//! to a bound, so that the question costs little on a table of any size.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::config::Mark;
use crate::mark::ledger::segment_numbers_sql;
use crate::row::ranges::RangeSet;
use crate::row::{Column, Layout};

/// Rows counted at most.
const ROWS_MAX: i64 = 100_000;
/// Gaps between sent numbers that are looked into at most, from the highest down: each takes a look into an index.
const GAPS_MAX: usize = 1_000;

/// What the database says of the rows that were not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Unsent {
    /// Held ones included.
    pub rows: u64,
    /// The rows were not all counted: there are at least so many.
    pub is_at_least: bool,
    /// Age of the oldest one that is not held; 0 where there is none, `None` where no column tells it.
    pub unheld_seconds: Option<f64>,
    /// Age of the oldest one, held ones included; `None` where there is none or no column tells it.
    pub oldest_seconds: Option<f64>,
}

/// What a running session knows beside the database.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// With the ledger, every number of which it is known what became of it, those of acknowledged rows too.
    pub accounted: Option<RangeSet>,
    /// Of rows that Kafka has and whose mark is not made yet.
    pub acknowledged: RangeSet,
    /// All such rows, also those without a number.
    pub acknowledged_rows: u64,
}

/// The question for one table and mark.
#[derive(Debug)]
pub(crate) struct Question {
    sql: String,
    outbox: String,
    /// The lowest and the highest number of each gap.
    gaps: Option<(Vec<i64>, Vec<i64>)>,
    has_more_gaps: bool,
    acknowledged: String,
    /// Acknowledged rows that the query can't leave out.
    unnumbered: u64,
}

impl Question {
    /// Asks for the rows of a table by its mark; `None` where nothing marks single rows, or the ledger has no numbers.
    ///
    /// `outbox` is the name under which the state stands. Without what a session knows the ledger itself is read.
    pub(crate) fn new(
        mark: Mark,
        layout: &Layout,
        outbox: &str,
        known: Option<&Known>,
    ) -> Option<Self> {
        let parts = Parts::of(layout);
        let accounted = known.and_then(|known| known.accounted.as_ref());
        let unsent = match (mark, &parts.seq, accounted) {
            (Mark::Ledger, Some(seq), Some(_)) => parts.in_gaps(seq, GIVEN_GAPS),
            (Mark::Ledger, Some(seq), None) => parts.in_gaps(seq, &recorded_gaps()),
            (Mark::SentAt, ..) => {
                parts.standing(&format!("o.{} IS NULL", layout.names.sql("sent_at")))
            }
            (Mark::Delete, ..) => parts.standing("true"),
            (Mark::Ledger, None, _) | (Mark::None, ..) => return None,
        };
        let mut question = Self {
            sql: format!("{unsent} {COUNT}"),
            outbox: outbox.to_owned(),
            gaps: None,
            has_more_gaps: false,
            acknowledged: RangeSet::new().to_multirange_text(),
            unnumbered: 0,
        };
        if let Some(known) = known {
            question.leave_out(known, mark, parts.seq.is_some());
        }
        Some(question)
    }

    fn leave_out(&mut self, known: &Known, mark: Mark, has_numbers: bool) {
        if let (Mark::Ledger, Some(accounted)) = (mark, &known.accounted) {
            let gaps: Vec<_> = accounted.gaps(i64::MIN..=i64::MAX).collect();
            let looked_into = &gaps[gaps.len().saturating_sub(GAPS_MAX)..];
            self.has_more_gaps = looked_into.len() < gaps.len();
            let ends = looked_into.iter().map(|gap| (*gap.start(), *gap.end()));
            self.gaps = Some(ends.unzip());
        } else if has_numbers {
            self.acknowledged = known.acknowledged.to_multirange_text();
        } else {
            self.unnumbered = known.acknowledged_rows;
        }
    }

    /// Asks; reads only.
    ///
    /// Cancel-safe: yes.
    pub(crate) async fn ask(&self, client: &Client) -> Result<Unsent, tokio_postgres::Error> {
        let mut values: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&self.outbox, Type::TEXT),
            (&ROWS_MAX, Type::INT8),
            (&self.acknowledged, Type::TEXT),
        ];
        if let Some((lows, highs)) = &self.gaps {
            values.push((lows, Type::INT8_ARRAY));
            values.push((highs, Type::INT8_ARRAY));
        }
        let rows = client.query_typed(&self.sql, &values).await?;
        let Some(row) = rows.first() else {
            return Ok(Unsent::default());
        };
        let (counted, unheld): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let (unheld_age, age): (Option<f64>, Option<f64>) = (row.try_get(2)?, row.try_get(3)?);
        let is_none = |rows: i64| rows.max(0).unsigned_abs() <= self.unnumbered;
        Ok(Unsent {
            rows: (counted.clamp(0, ROWS_MAX).unsigned_abs()).saturating_sub(self.unnumbered),
            is_at_least: counted > ROWS_MAX || self.has_more_gaps,
            // A service's clock may be ahead of the server's.
            unheld_seconds: match is_none(unheld) {
                true => Some(0.0),
                false => unheld_age.map(|age| age.max(0.0)),
            },
            oldest_seconds: match is_none(counted) {
                true => None,
                false => age.map(|age| age.max(0.0)),
            },
        })
    }
}

/// The numbers of the rows that are held: `$1` is the outbox.
const HELD: &str = "held AS MATERIALIZED (\
    SELECT coalesce(range_agg(part), '{}') AS numbers FROM outboxd.blocked b \
    JOIN outboxd.outbox x USING (outbox, generation), unnest(b.held) AS part \
    WHERE b.outbox = $1 AND b.state <> 'released')";

/// The blocked aggregates, for a table without numbers.
const BLOCKED: &str = "(SELECT coalesce(b.aggregatetype, ''), coalesce(b.aggregateid, '') FROM outboxd.blocked b \
    WHERE b.outbox = $1 AND b.kind = 'aggregate' AND b.state <> 'released')";

/// `$4` and `$5` are the ends of the gaps.
const GIVEN_GAPS: &str =
    "gaps AS (SELECT * FROM unnest($4::int8[], $5::int8[]) AS gap (low, high))";

/// Of rows with their age in seconds, and whether they are held.
const COUNT: &str = "SELECT count(*), count(*) FILTER (WHERE NOT is_held), \
    max(age) FILTER (WHERE NOT is_held), max(age) FROM unsent";

/// What is resolved, from the ledger; everything else is a gap or above the highest number. A segment that is closed
/// counts whole. The gaps are looked up by range: nothing is read twice, nothing sent is read.
fn recorded_gaps() -> String {
    format!(
        "segments AS (\
      SELECT l.segment, bool_or(l.closed) AS closed FROM outboxd.ledger l \
      JOIN outboxd.outbox x USING (outbox, generation) WHERE outbox = $1 GROUP BY l.segment), \
    resolved AS (\
      SELECT {} AS numbers FROM segments WHERE closed \
      UNION ALL SELECT unnest(l.sent) FROM outboxd.ledger l JOIN outboxd.outbox x USING (outbox, generation) \
      JOIN segments s USING (segment) WHERE outbox = $1 AND NOT s.closed \
      UNION ALL SELECT unnest(x.skipped) FROM outboxd.outbox x WHERE x.outbox = $1 \
      UNION ALL SELECT int8range(k.seq, k.seq, '[]') FROM outboxd.kept k JOIN outboxd.outbox x USING (outbox, generation) \
      WHERE outbox = $1 AND k.seq IS NOT NULL AND k.state <> 'replayed'), \
    gaps AS (SELECT coalesce(lower(gap), -9223372036854775808) AS low, \
        coalesce(upper(gap) - 1, 9223372036854775807) AS high \
      FROM unnest(int8multirange(int8range(NULL, NULL)) - \
        coalesce((SELECT range_agg(numbers) FROM resolved), int8multirange())) AS gap)",
        segment_numbers_sql("segment")
    )
}

/// The table in SQL.
struct Parts {
    table: String,
    seq: Option<String>,
    age: String,
    aggregate: [String; 2],
    id: String,
}

impl Parts {
    fn of(layout: &Layout) -> Self {
        let name = |column: usize| format!("o.{}", escape_identifier(&layout.columns[column].name));
        let created = layout.ours("created_at");
        Self {
            table: layout.sql_name(),
            seq: layout.seq.map(name),
            age: created.map_or_else(
                || NO_AGE.to_owned(),
                |column| age(&layout.columns[column], &name(column)),
            ),
            aggregate: [layout.aggregate_type, layout.aggregate_id]
                .map(|column| format!("coalesce({}, '')", layout.text_of(column))),
            id: layout.text_of(layout.id),
        }
    }

    /// The rows in the gaps, and those that are held, which were put aside: each row once.
    fn in_gaps(&self, seq: &str, gaps: &str) -> String {
        let (table, age) = (&self.table, &self.age);
        let between = |from: &str, to: &str, which: &str| {
            format!(
                "LATERAL (SELECT {age} AS age FROM {table} o WHERE {seq} >= {from} AND {seq} <= {to}{which} \
                 ORDER BY {seq} LIMIT $2 + 1) row"
            )
        };
        let unheld = between(
            "gap.low",
            "gap.high",
            &format!(" AND NOT held.numbers @> {seq}::int8"),
        );
        let held = between("lower(part)", "upper(part) - 1", "");
        format!(
            "WITH {HELD}, {gaps}, unsent AS (SELECT age, is_held FROM (\
               SELECT row.age, false AS is_held FROM held, gaps AS gap, {unheld} \
               UNION ALL SELECT row.age, true FROM held, unnest(held.numbers) AS part, {held}\
             ) AS found WHERE $3::text IS NOT NULL LIMIT $2 + 1)"
        )
    }

    /// The rows that stand, and are not acknowledged and not skipped.
    fn standing(&self, unsent: &str) -> String {
        let (table, age, id) = (&self.table, &self.age, &self.id);
        let skipped_id = format!(
            "NOT EXISTS (SELECT FROM outboxd.skipped s WHERE s.outbox = $1 AND s.id = {id})"
        );
        let [kind, aggregate] = &self.aggregate;
        let (is_held, is_left, order) = match &self.seq {
            Some(seq) => (
                format!("coalesce(held.numbers @> {seq}::int8, false)"),
                format!(
                    "NOT coalesce(($3::text)::int8multirange @> {seq}::int8, false) \
                     AND NOT coalesce((SELECT x.skipped FROM outboxd.outbox x WHERE x.outbox = $1) @> {seq}::int8, false)"
                ),
                format!("ORDER BY {seq}"),
            ),
            None => (
                format!("({kind}, {aggregate}) IN {BLOCKED}"),
                "$3::text IS NOT NULL".to_owned(),
                String::new(),
            ),
        };
        format!(
            "WITH {HELD}, unsent AS (SELECT {age} AS age, {is_held} AS is_held FROM {table} o, held \
             WHERE {unsent} AND {is_left} AND {skipped_id} {order} LIMIT $2 + 1)"
        )
    }
}

const NO_AGE: &str = "NULL::float8";

/// A row's age in seconds by the server's clock, NULL where the column's type is no moment or the value is infinite.
fn age(created: &Column, name: &str) -> String {
    let base = created.base_type();
    let is_moment = base == "date" || base.starts_with("timestamp");
    match is_moment {
        true => format!(
            "CASE WHEN isfinite({name}) THEN extract(epoch FROM clock_timestamp() - {name}::timestamptz)::float8 END"
        ),
        false => NO_AGE.to_owned(),
    }
}
