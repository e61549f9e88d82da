//! Which of some numbers are rows: one statement, by range.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::PollError;
use super::statement::{prepare, stream};
use crate::postgres::SqlConnection;
use crate::row::Layout;
use crate::row::ranges::RangeSet;
use crate::source::holes::Snapshot;

/// The ranges of a statement's first two parameters, as rows.
pub(super) const RANGES: &str =
    "ROWS FROM (pg_catalog.unnest($1::int8[]), pg_catalog.unnest($2::int8[])) AS hole(low, high)";
/// A guess at what looking up one number costs, before the first look-up.
const NUMBER_COST: Duration = Duration::from_micros(1);

/// The statement, and what it costs.
pub(in crate::source) struct LookUp {
    /// Which numbers of some ranges are rows, and the snapshot that says so.
    statement: Statement,
    /// Seconds that looking up one number takes.
    number_cost: f64,
}

impl LookUp {
    pub(in crate::source) async fn prepare(
        session: &SqlConnection,
        layout: &Layout,
        table: &str,
    ) -> Result<Self, PollError> {
        let seq = layout.seq.and_then(|column| layout.columns.get(column));
        let seq = escape_identifier(&seq.ok_or(PollError::NoOrder)?.name);
        let query = format!(
            "SELECT NULL::int8, pg_catalog.pg_current_snapshot()::text UNION ALL \
             SELECT filled.seq, NULL FROM {RANGES} CROSS JOIN LATERAL \
             (SELECT o.{seq}::int8 AS seq FROM {table} AS o \
             WHERE o.{seq} BETWEEN hole.low AND hole.high OFFSET 0) AS filled"
        );
        let statement = prepare(session, &query).await?;
        Ok(Self {
            statement,
            number_cost: NUMBER_COST.as_secs_f64(),
        })
    }

    /// How long it takes to look so many numbers up.
    pub(super) fn cost_of(&self, numbers: u64) -> Duration {
        Duration::try_from_secs_f64(self.number_cost * numbers as f64).unwrap_or(Duration::MAX)
    }

    /// Asks in one statement, hence in one snapshot.
    pub(in crate::source) async fn ask(
        &mut self,
        session: &SqlConnection,
        numbers: &RangeSet,
    ) -> Result<(RangeSet, Snapshot), PollError> {
        let (mut found, mut seen) = (RangeSet::new(), Snapshot::default());
        if numbers.is_empty() {
            return Ok((found, seen));
        }
        let began = Instant::now();
        let (low, high) = bounds(numbers);
        let params: [&(dyn ToSql + Sync); 2] = [&low, &high];
        let mut rows = pin!(stream(session, &self.statement, params).await?);
        loop {
            let row = rows.try_next().await;
            let Some(row) = PollError::check(session, "look numbers up", row).await? else {
                break;
            };
            match row.get::<_, Option<i64>>(0) {
                Some(seq) => found.insert(seq),
                None => seen = snapshot(row.get(1))?,
            }
        }
        let cost = began.elapsed().as_secs_f64() / numbers.len() as f64;
        self.number_cost += (cost - self.number_cost) / 4.0;
        Ok((found, seen))
    }
}

/// The ends of a set's ranges, as two arrays.
pub(super) fn bounds(numbers: &RangeSet) -> (Vec<i64>, Vec<i64>) {
    let ends = |range: std::ops::RangeInclusive<i64>| range.into_inner();
    numbers.ranges().map(ends).unzip()
}

fn snapshot(text: &str) -> Result<Snapshot, PollError> {
    text.parse()
        .map_err(|_| PollError::Unexpected("a snapshot it does not print"))
}
