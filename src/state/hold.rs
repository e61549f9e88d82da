//! Durable holds: what is blocked, which rows wait for it, and the rows that are kept whole.
//!
//! A row that is put aside is settled once it is recorded here (docs/design.md, "What is put aside"). Every statement that writes checks the
//! lease's epoch, and recording a row twice is harmless.

mod entry;
mod history;
mod record;
mod release;
mod replay;
mod statement;
mod wait;

use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

pub(crate) use entry::{HoldEntry, KeptRow, What};
pub(crate) use history::forget_history;
pub(crate) use record::{CopyPolicy, HoldCheckpoint};
pub(crate) use release::{keep_unmarked, release, to_skip};
pub(crate) use replay::merge;
pub(crate) use replay::{
    Copies, Due, ReplayOrder, Replayed, RowsAhead, replayed, take_out_sent, to_replay,
};
pub(crate) use wait::{Answer, Asker, Requested, wait};

use crate::core::{Aggregate, Followers, HeldAggregate, Help, Recorded, TopicHold};
use crate::mark::MarkError;
use crate::mark::ledger::number_sql;
use crate::row::RowId;
use crate::row::ranges::RangeSet;

/// What tells one entry of `outboxd.blocked` from another; `r` has kind, aggregatetype, aggregateid, topic.
const ENTRY_KEY: &str = "encode(sha256(convert_to(jsonb_build_array(r.kind, r.aggregatetype, r.aggregateid, \
                         r.topic)::text, 'UTF8')), 'hex')";

/// What tells one row of `outboxd.kept` from another, by these expressions.
fn kept_key(generation: &str, seq: &str, row_id: &str) -> String {
    format!(
        "encode(sha256(convert_to(jsonb_build_array({generation}, {seq}, {row_id})::text, 'UTF8')), 'hex')"
    )
}

/// Loads what is held and kept of one outbox; numbers of earlier generations are not this table's any more.
///
/// Cancel-safe: yes.
pub(crate) async fn load(
    client: &Client,
    outbox: &str,
    generation: i32,
) -> Result<Recorded, MarkError> {
    let sql = "SELECT kind, aggregatetype, aggregateid, topic, held::text, row_id, reason, error, policy, \
               generation = $2 FROM outboxd.blocked WHERE outbox = $1 AND state <> 'released'";
    let rows = client
        .query(sql, &[&outbox, &generation])
        .await
        .map_err(MarkError::sql("read what is blocked"))?;
    let mut recorded = Recorded {
        numbers: kept_numbers(client, outbox, generation).await?,
        kept_bytes: kept_bytes(client, outbox).await?,
        ..Recorded::default()
    };
    for row in &rows {
        let held = parse(outbox, row.get(4))?;
        let rows = held.len();
        if row.get(9) {
            recorded.numbers.extend(&held);
        }
        let (reason, error): (String, String) = (row.get(6), row.get(7));
        if let Some(topic) = row.get::<_, Option<&str>>(3) {
            let hold = TopicHold {
                is_refused: reason == "refused",
                help: Help::Unknown,
                reason: error,
                rows: rows.max(1),
            };
            recorded.topics.push((topic.into(), hold));
            continue;
        }
        let (kind, id): (Option<&str>, Option<&str>) = (row.get(1), row.get(2));
        let followers = match row.get(8) {
            "follow" => Followers::Die,
            _ => Followers::Wait,
        };
        let aggregate = Aggregate::of(kind.map(str::as_bytes), id.map(str::as_bytes));
        let held = HeldAggregate {
            aggregate_type: kind.unwrap_or_default().to_owned(),
            row: RowId::from_text(row.get::<_, &str>(5).as_bytes()),
            reason,
            error,
            followers,
            rows,
        };
        recorded.aggregates.push((aggregate, held));
    }
    Ok(recorded)
}

/// The numbers of dead letters, of rows that were skipped, and of held rows that are kept whole.
async fn kept_numbers(
    client: &Client,
    outbox: &str,
    generation: i32,
) -> Result<RangeSet, MarkError> {
    let sql = format!(
        "SELECT coalesce(range_agg({}), '{{}}')::text FROM outboxd.kept \
         WHERE outbox = $1 AND generation = $2 AND seq IS NOT NULL AND state <> 'replayed'",
        number_sql("seq")
    );
    let row = client
        .query_one(&sql, &[&outbox, &generation])
        .await
        .map_err(MarkError::sql("read what is kept"))?;
    parse(outbox, row.get(0))
}

/// What the copies of held rows take in the database.
async fn kept_bytes(client: &Client, outbox: &str) -> Result<u64, MarkError> {
    let sql = "SELECT coalesce(sum(pg_column_size(fields)), 0)::int8 FROM outboxd.kept \
               WHERE outbox = $1 AND state = 'held'";
    let row = client
        .query_one(sql, &[&outbox])
        .await
        .map_err(MarkError::sql("read what is kept"))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

fn parse(outbox: &str, multirange: &str) -> Result<RangeSet, MarkError> {
    let unreadable = |source| MarkError::Unreadable {
        outbox: outbox.to_owned(),
        source,
    };
    RangeSet::parse_multirange(multirange).map_err(unreadable)
}

/// What the state tables say to a running session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    /// Somebody asked for a release or a replay since the session began.
    pub is_asked_for: bool,
    /// Rows that are kept as dead letters, counted up to 100,000.
    pub dead_letters: u64,
}

/// Asks for requests and dead letters.
///
/// Cancel-safe: yes.
pub(crate) async fn requests(client: &Client, outbox: &str) -> Result<Requests, MarkError> {
    let sql = "SELECT EXISTS (SELECT FROM outboxd.blocked WHERE outbox = $1 AND state IN ('retry', 'skip')) \
               OR EXISTS (SELECT FROM outboxd.kept WHERE outbox = $1 AND state = 'replay'), \
               (SELECT count(*) FROM (SELECT FROM outboxd.kept WHERE outbox = $1 AND state = 'dead' \
               LIMIT 100000) dead)";
    // In one round trip: an idle relay asks, too.
    let rows = client
        .query_typed(sql, &[(&outbox, Type::TEXT)])
        .await
        .map_err(MarkError::sql("read what is blocked"))?;
    let row = rows.first().expect("a SELECT without FROM gives one row");
    Ok(Requests {
        is_asked_for: row.get(0),
        dead_letters: u64::try_from(row.get::<_, i64>(1)).unwrap_or(0),
    })
}

/// The names of topics.
pub(crate) type Topics = Vec<Arc<str>>;
