//! What became of a request: a command waits for the relay that holds the lease.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::mark::MarkError;
use crate::mark::ledger::segment_sql;

/// Who asks for something, and why.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub actor: String,
    pub note: Option<String>,
}

/// What is waited for: entries of `outboxd.blocked` by key, rows of `outboxd.kept` by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requested {
    pub keys: Vec<String>,
    pub kept: Vec<i64>,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// All was released, and nothing was at fault again as far as the wait went.
    Done,
    /// So many were at fault again; the first one's reason and error.
    Again {
        count: usize,
        reason: String,
        error: String,
    },
    /// Nobody holds the lease: it happens when a relay does.
    NoRelay,
    /// A relay holds the lease and has not done it within the wait.
    NotYet,
}

/// The relay looks once a second, ends its session and reads the table.
const WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(200);
/// How long what is released is watched for a fault, where no ledger tells that the row was sent.
const WATCHED: Duration = Duration::from_secs(3);

struct RequestProgress {
    waiting: i64,
    unsent: i64,
    again: i64,
    reason: String,
    error: String,
    has_relay: bool,
}

/// Waits until the relay has done what was requested, at most 15 s.
///
/// Cancel-safe: yes.
pub(crate) async fn wait(
    client: &Client,
    outbox: &str,
    requested: &Requested,
) -> Result<Answer, MarkError> {
    let until = Instant::now() + WITHIN;
    let mut released_at = None;
    loop {
        let standing = look(client, outbox, requested).await?;
        if standing.waiting == 0 {
            let released_at = *released_at.get_or_insert_with(Instant::now);
            if standing.again > 0 {
                return Ok(Answer::Again {
                    count: usize::try_from(standing.again).unwrap_or(usize::MAX),
                    reason: standing.reason,
                    error: standing.error,
                });
            }
            if standing.unsent == 0 || released_at.elapsed() >= WATCHED {
                return Ok(Answer::Done);
            }
        } else if !standing.has_relay {
            return Ok(Answer::NoRelay);
        }
        if Instant::now() >= until {
            return Ok(match standing.waiting {
                0 => Answer::Done,
                _ => Answer::NotYet,
            });
        }
        sleep(POLL).await;
    }
}

async fn look(
    client: &Client,
    outbox: &str,
    requested: &Requested,
) -> Result<RequestProgress, MarkError> {
    let row = client
        .query_one(&look_sql(), &[&outbox, &requested.keys, &requested.kept])
        .await;
    let row = row.map_err(MarkError::sql("see what became of it"))?;
    Ok(RequestProgress {
        waiting: row.get("waiting"),
        unsent: row.get("unsent"),
        again: row.get("again"),
        reason: row.get("reason"),
        error: row.get("error"),
        has_relay: row.get("has_relay"),
    })
}

/// An entry is waited for until its copies went out too; its first row was sent once the ledger says so.
fn look_sql() -> String {
    let segment = segment_sql("b.row_seq");
    format!(
        "
    WITH requested AS (
        SELECT reason, error, since,
               state IN ('retry', 'skip') OR EXISTS (
                   SELECT FROM outboxd.kept k WHERE k.outbox = $1 AND k.blocked_key = b.key AND k.state = 'replay') AS waits,
               state = 'blocked' AS again,
               NOT EXISTS (SELECT FROM outboxd.ledger l WHERE l.outbox = $1 AND l.generation = b.generation
                   AND l.segment = {segment} AND l.sent @> b.row_seq) AS unsent
        FROM outboxd.blocked b WHERE outbox = $1 AND key = ANY ($2)
        UNION ALL
        SELECT reason, error, since, state = 'replay', state IN ('dead', 'held'), false
        FROM outboxd.kept WHERE outbox = $1 AND id = ANY ($3))
    SELECT count(*) FILTER (WHERE waits) AS waiting, count(*) FILTER (WHERE unsent) AS unsent,
           count(*) FILTER (WHERE again) AS again,
           coalesce((array_agg(reason ORDER BY since) FILTER (WHERE again))[1], '') AS reason,
           coalesce((array_agg(error ORDER BY since) FILTER (WHERE again))[1], '') AS error,
           coalesce((SELECT NOT released AND clock_timestamp() - at < ttl FROM outboxd.lease WHERE outbox = $1), false)
               AS has_relay
    FROM requested"
    )
}
