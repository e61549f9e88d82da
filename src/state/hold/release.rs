//! Releasing what was blocked: on request, or when a topic can be written again.
//!
//! A release only forgets the hold. The rows are then read from the table in order of `seq`, by the catch-up that
//! follows, before anything newer of their aggregates; rows that are kept whole are replayed first, with what stands
//! ahead of them in the table.

use tokio_postgres::Client;

use super::{Topics, kept_key};
use crate::core::Delivered;
use crate::mark::ledger::{LEASE, segments_sql};
use crate::mark::{FencingToken, MarkError, MarkOutcome};
use crate::row::{Layout, Lsn, Origin, RowId};

/// One entry that was released.
#[derive(Clone, Debug)]
pub(crate) struct Released {
    /// `retry`, `skip`, or `blocked` for a topic that can be written again.
    pub why: String,
    pub topic: Option<String>,
    /// The row that was at fault.
    pub row_id: String,
    pub actor: Option<String>,
}

/// The rows at fault that somebody asked to skip.
pub(crate) async fn to_skip(client: &Client, outbox: &str) -> Result<Vec<Delivered>, MarkError> {
    let sql = "SELECT row_seq, row_id FROM outboxd.blocked WHERE outbox = $1 AND state = 'skip'";
    let rows = client
        .query(sql, &[&outbox])
        .await
        .map_err(MarkError::sql("read what is blocked"))?;
    let skip = |row: &tokio_postgres::Row| Delivered {
        ticket: 0,
        seq: row.get(0),
        id: RowId::from_text(row.get::<_, &str>(1).as_bytes()),
        lsn: Lsn(0),
        origin: Origin::Unknown,
    };
    Ok(rows.iter().map(skip).collect())
}

/// Keeps what was to be skipped and can't be marked as sent: a row that is unsent in the table is read again.
pub(crate) async fn keep_unmarked(
    client: &Client,
    token: &FencingToken,
    outcome: &MarkOutcome,
) -> Result<(), MarkError> {
    let refused = outcome.refused.iter();
    let refused = refused.map(|refusal| (&refusal.row, refusal.error.as_str()));
    // Another row that waits does not stand in the table.
    let is_locked = |row: &&Delivered| row.origin == Origin::Unknown;
    let locked = outcome.waiting.iter().filter(is_locked);
    let locked = locked.map(|row| (row, "somebody holds a lock on the row"));
    let (ids, errors): (Vec<_>, Vec<_>) = refused
        .chain(locked)
        .map(|(row, error)| (row.id.to_string(), error))
        .unzip();
    if ids.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "WITH {LEASE} UPDATE outboxd.blocked b SET state = 'blocked', error = r.error, at = clock_timestamp() \
         FROM lease, unnest($3::text[], $4::text[]) AS r (row_id, error) \
         WHERE b.outbox = $1 AND b.epoch <= $2 AND b.state = 'skip' AND b.row_id = r.row_id"
    );
    let kept = client
        .execute(&sql, &[&token.outbox, &token.epoch, &ids, &errors])
        .await;
    kept.map(drop)
        .map_err(MarkError::sql("keep what can't be skipped"))
}

/// Releases what was asked for, and these topics, in one statement.
///
/// `table` is where the rows stand, `None` where nothing is marked and all are kept whole. What stands in the table is
/// read from there, for it may have been mended: closed segments are opened again, the table is to be read, and copies
/// of its rows go. The followers of a dead letter are replayed with it. A relay without the lease releases nothing.
pub(crate) async fn release(
    client: &Client,
    token: &FencingToken,
    topics: &Topics,
    table: Option<&Layout>,
) -> Result<Vec<Released>, MarkError> {
    let stands = table.map_or("false".to_owned(), stands_in);
    let discarded = kept_key("generation", "row_seq", "row_id");
    let (first_segment, last_segment) = segments_sql("numbers");
    let sql = format!(
        "WITH {LEASE}, due AS (\
           SELECT b.* FROM outboxd.blocked b, lease WHERE b.outbox = $1 \
             AND (b.state IN ('retry', 'skip') OR b.state = 'blocked' AND b.topic = ANY ($3)) FOR UPDATE OF b), \
         skipped AS (\
           INSERT INTO outboxd.kept AS k (outbox, key, blocked_key, state, generation, seq, row_id, aggregatetype, \
             aggregateid, reason, error, actor, note, epoch) \
           SELECT $1, {discarded}, key, 'discarded', generation, row_seq, row_id, aggregatetype, aggregateid, reason, error, actor, note, $2 \
           FROM due WHERE state = 'skip' \
           ON CONFLICT (outbox, key) DO UPDATE SET state = 'discarded', actor = excluded.actor, \
             note = excluded.note, at = clock_timestamp()), \
         copy AS (\
           SELECT k.id, k.state = 'held' AND {stands} AS stands FROM outboxd.kept k, due \
           WHERE k.outbox = $1 AND k.blocked_key = due.key \
             AND (k.state = 'held' OR k.state = 'dead' AND due.policy = 'follow') \
             AND NOT (due.state = 'skip' AND (k.generation, k.seq, k.row_id) \
               IS NOT DISTINCT FROM (due.generation, due.row_seq, due.row_id))), \
         copies AS (\
           UPDATE outboxd.kept k SET state = 'replay', at = clock_timestamp() FROM copy \
           WHERE k.id = copy.id AND NOT copy.stands), \
         dropped AS (DELETE FROM outboxd.kept k USING copy WHERE k.id = copy.id AND copy.stands), \
         reopened AS (\
           UPDATE outboxd.ledger l SET closed = false FROM due, unnest(due.held) AS numbers \
           WHERE l.outbox = $1 AND l.closed AND l.generation = due.generation \
             AND l.segment BETWEEN {first_segment} AND {last_segment}), \
         freed AS (\
           UPDATE outboxd.blocked b SET state = 'released', held = '{{}}', at = clock_timestamp() FROM due \
           WHERE b.outbox = $1 AND b.key = due.key), \
         again AS (\
           UPDATE outboxd.outbox SET caught_up = false \
           WHERE outbox = $1 AND $4 AND EXISTS (SELECT FROM due)) \
         SELECT state, topic, row_id, actor FROM due"
    );
    let topics: Vec<_> = topics.iter().map(AsRef::as_ref).collect::<Vec<&str>>();
    let rows = client
        .query(
            &sql,
            &[&token.outbox, &token.epoch, &topics, &table.is_some()],
        )
        .await
        .map_err(MarkError::sql("release what was blocked"))?;
    let released = |row: &tokio_postgres::Row| Released {
        why: row.get(0),
        topic: row.get(1),
        row_id: row.get(2),
        actor: row.get(3),
    };
    Ok(rows.iter().map(released).collect())
}

/// Whether the row of an entry `k` stands unsent in the table: the stream may bring a row that is not visible yet, and a
/// dead letter was marked where rows are marked one by one.
fn stands_in(layout: &Layout) -> String {
    let is_same = match layout.seq {
        Some(_) => format!("o.{} = k.seq", layout.names.sql("seq")),
        None => format!("{} = k.row_id", layout.text_of(layout.id)),
    };
    let is_unsent = match layout.sent_at {
        Some(_) => format!("AND o.{} IS NULL", layout.names.sql("sent_at")),
        None => String::new(),
    };
    format!(
        "EXISTS (SELECT FROM {} o WHERE {is_same} {is_unsent})",
        layout.sql_name()
    )
}
