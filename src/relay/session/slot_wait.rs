//! What a new slot waits for: PostgreSQL begins one when every transaction that wrote has ended, in all databases.
//!
//! Looks on a connection of its own, for the one that creates the slot is busy. Ends nobody's transaction.

use std::convert::Infallible;
use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tracing::{debug, warn};

use super::{OpenError, connect};
use crate::observe::status::{State, StatusCell, Timestamp};
use crate::postgres::{self, ConnectOptions, PostgresError};
use crate::text::chain;

/// A slot that waits for nobody is made within this.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOG_EVERY: Duration = Duration::from_secs(60);

/// When somebody else's transaction began is shown to members of `pg_read_all_stats` only.
const LOOK: &str = "
    WITH writers AS (
        SELECT backend_xid AS xid, xact_start AS since,
               'pid ' || pid || coalesce(' of database ' || quote_ident(datname), '') AS who
        FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL
        UNION ALL
        SELECT transaction, prepared, 'prepared transaction ' || quote_literal(gid) || ' of database ' || quote_ident(database)
        FROM pg_catalog.pg_prepared_xacts)
    SELECT (SELECT count(*) FROM writers) AS open, who, since FROM writers
    WHERE EXISTS (SELECT FROM pg_catalog.pg_locks WHERE pid = $1 AND locktype = 'transactionid' AND NOT granted)
    ORDER BY pg_catalog.age(xid) DESC LIMIT 1";

/// The transactions that are open, and the oldest of them.
struct Writers {
    open: i64,
    who: String,
    since: Option<SystemTime>,
}

impl fmt::Display for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, who) = (self.open, &self.who);
        write!(
            f,
            "it waits until all open transactions have ended: {open}, the oldest is {who}"
        )?;
        match self.since {
            Some(since) => write!(f, ", since {}", Timestamp(since)),
            None => Ok(()),
        }
    }
}

/// Says in report and log what the slot waits for that backend `pid` creates, as long as it waits.
///
/// Cancel-safe: yes.
pub(super) async fn tell(
    options: &ConnectOptions,
    slot: &str,
    pid: i32,
    status: &StatusCell,
) -> Infallible {
    let mut session = None;
    let mut said_at: Option<Instant> = None;
    loop {
        sleep(LOOK_EVERY).await;
        let writers = match look(&mut session, options, pid).await {
            Ok(Some(writers)) => writers,
            Ok(None) => continue,
            Err(failure) => {
                debug!(
                    error = chain(&failure),
                    "cannot see what the slot waits for"
                );
                session = None;
                continue;
            }
        };
        status.state(State::Waiting, format!("creating slot `{slot}`: {writers}"));
        if said_at.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            said_at = Some(Instant::now());
            warn!(slot, "creating the slot: {writers}");
        }
    }
}

async fn look(
    session: &mut Option<postgres::SqlConnection>,
    options: &ConnectOptions,
    pid: i32,
) -> Result<Option<Writers>, OpenError> {
    let session = match session {
        Some(session) => session,
        none => none.insert(connect(options, "watch").await?),
    };
    writers(&session.client, pid)
        .await
        .map_err(|source| OpenError::Postgres {
            purpose: "its open transactions",
            source,
        })
}

async fn writers(client: &Client, pid: i32) -> Result<Option<Writers>, PostgresError> {
    let row = client.query_opt(LOOK, &[&pid]).await?;
    Ok(row.map(|row| Writers {
        open: row.get("open"),
        who: row.get("who"),
        since: row.get("since"),
    }))
}
