//! What the database alone can say of an outbox: its lease, its slot, and what was not sent.
//!
//! Reads only. Counts stop at a limit, so that the question costs little on a table of any size.

use std::time::Duration;

use tokio_postgres::Client;

use super::{Lease, Peer, Role, State, Status, StatusError, show_unsent};
use crate::config::{Mark, Mode, SourceConfig};
use crate::postgres::catalog::{InspectError, inspect};
use crate::postgres::{self, SqlConnection};
use crate::row::Layout;
use crate::state::lease::lease_key;
use crate::state::names;
use crate::state::retention;
use crate::state::unsent::{Question, Unsent};
use crate::text::chain;

pub(super) const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '5s'";

const LEASE: &str = "SELECT owner, epoch, NOT released AND clock_timestamp() - at < ttl, \
    extract(epoch FROM clock_timestamp() - at)::float8 FROM outboxd.lease WHERE outbox = $1";

// Numbers tell how many rows wait for each; whether they do, for rows may have none.
const HELD: &str = "SELECT count(*) FILTER (WHERE kind = 'aggregate'), \
    coalesce(sum(rows) FILTER (WHERE kind = 'aggregate'), 0)::int8, \
    coalesce(sum(rows) FILTER (WHERE kind = 'topic'), 0)::int8, coalesce(bool_and(rows > 0 OR policy = 'follow'), true), \
    (SELECT count(*) FROM (SELECT FROM outboxd.kept WHERE outbox = $1 AND state = 'dead' LIMIT 100000) dead) \
    FROM outboxd.blocked, LATERAL (SELECT coalesce(sum(upper(part) - lower(part)), 0) AS rows \
      FROM unnest(held) AS part) AS waiting \
    WHERE outbox = $1 AND state <> 'released'";

const SLOT: &str = "SELECT confirmed_flush_lsn::text, wal_status, \
    pg_wal_lsn_diff(here.lsn, confirmed_flush_lsn)::int8, \
    pg_wal_lsn_diff(here.lsn, restart_lsn)::int8 FROM pg_replication_slots, \
    (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() \
    END AS lsn) here WHERE slot_name = $1 AND database = current_database()";

const SENT_SEQ: &str = "SELECT max(l.last_seq) FROM outboxd.ledger l JOIN outboxd.outbox o \
    USING (outbox, generation) WHERE outbox = $1";

/// Asks the database; `no_relay` says why it has to.
pub(crate) async fn ask(source: &SourceConfig, no_relay: &str) -> Result<Status, StatusError> {
    let options = source.url.options().map_err(|source| StatusError::Url {
        no_relay: no_relay.to_owned(),
        source,
    })?;
    let connected = postgres::connect(&options, "status").await;
    let session = connected.map_err(|source| StatusError::Connect {
        no_relay: no_relay.to_owned(),
        source,
    })?;
    let source = &names::resolve(&session.client, source).await?;
    let mut status = Status::starting(source);
    status.locate(source, &options);
    status.server = Some(session.host.to_string());
    let outbox = status.table.clone();
    match read(&session, source, &mut status).await {
        Ok(true) => Ok(status),
        Ok(false) => Err(StatusError::NoTable { outbox }),
        Err(error) => {
            let source = session.explain(error).await;
            Err(StatusError::Read { outbox, source })
        }
    }
}

async fn read(
    session: &SqlConnection,
    source: &SourceConfig,
    status: &mut Status,
) -> Result<bool, tokio_postgres::Error> {
    let client = &session.client;
    client.batch_execute(STATEMENT_TIMEOUT).await?;
    let Ok(name) = source.table_name() else {
        return Ok(false);
    };
    let inspected = inspect(client, &name.schema, &name.table, &source.columns).await;
    if matches!(inspected, Err(InspectError::NotFound { .. })) {
        return Ok(false);
    }
    status.postgres = Peer {
        is_up: Some(true),
        error: None,
    };
    status.table_size = retention::table_size(client, &name.quoted()).await?;
    let has_state = has_state(client).await?;
    if has_state {
        let key = lease_key(source);
        read_lease(client, &key, status).await?;
        read_held(client, &key, status).await?;
        if source.mark == Mark::Ledger {
            let sent = client.query_one(SENT_SEQ, &[&status.table]).await?;
            status.position.sent_seq = sent.try_get(0)?;
        }
    } else {
        (status.role, status.state) = (Role::Stopped, State::Unknown);
        "the schema outboxd is missing: run `outboxd migrate`".clone_into(&mut status.reason);
    }
    if source.mode == Mode::Replication {
        read_slot(client, &source.replication.slot, status).await?;
    }
    match inspected {
        Ok(table) if has_state => {
            if let Some(unsent) = count_unsent(client, source, &table.layout).await? {
                show_unsent(&unsent, status);
            }
        }
        Ok(_) => {}
        Err(error) => status.reason += &format!("; {}", chain(&error)),
    }
    Ok(true)
}

async fn has_state(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT to_regclass('outboxd.lease') IS NOT NULL \
        AND to_regclass('outboxd.ledger') IS NOT NULL AND to_regclass('outboxd.outbox') IS NOT NULL \
        AND to_regclass('outboxd.blocked') IS NOT NULL AND to_regclass('outboxd.kept') IS NOT NULL";
    client.query_one(sql, &[]).await?.try_get(0)
}

async fn read_lease(
    client: &Client,
    key: &str,
    status: &mut Status,
) -> Result<(), tokio_postgres::Error> {
    status.state = State::Unknown;
    status.role = Role::Stopped;
    let Some(row) = client.query_opt(LEASE, &[&key]).await? else {
        "no relay ever held the lease".clone_into(&mut status.reason);
        return Ok(());
    };
    let (holder, epoch): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
    let (is_held, age_seconds): (bool, f64) = (row.try_get(2)?, row.try_get(3)?);
    let age = humantime::format_duration(Duration::from_secs(age_seconds.max(0.0) as u64));
    status.reason = if is_held {
        status.role = Role::Leader;
        format!("a relay holds the lease, renewed {age} ago")
    } else {
        format!("no relay is running; the last one stopped {age} ago")
    };
    status.lease = Some(Lease {
        holder,
        epoch: Some(epoch),
    });
    Ok(())
}

async fn read_held(
    client: &Client,
    key: &str,
    status: &mut Status,
) -> Result<(), tokio_postgres::Error> {
    let row = client.query_one(HELD, &[&key]).await?;
    let count = |column: usize| -> Result<Option<u64>, tokio_postgres::Error> {
        Ok(u64::try_from(row.try_get::<_, i64>(column)?).ok())
    };
    let are_told: bool = row.try_get(3)?;
    status.blocked_aggregates = count(0)?;
    status.blocked_rows = count(1)?.filter(|_| are_told);
    status.held_topic_rows = count(2)?.filter(|_| are_told);
    status.dead_letters = count(4)?;
    Ok(())
}

async fn read_slot(
    client: &Client,
    slot: &str,
    status: &mut Status,
) -> Result<(), tokio_postgres::Error> {
    let Some(row) = client.query_opt(SLOT, &[&slot]).await? else {
        status.reason += &format!("; the slot `{slot}` does not exist");
        return Ok(());
    };
    status.position.confirmed_lsn = row.try_get(0)?;
    if row.try_get::<_, Option<String>>(1)?.as_deref() == Some("lost") {
        status.reason += &format!("; PostgreSQL gave up the WAL of slot `{slot}`");
    }
    let bytes = |bytes: Option<i64>| bytes.and_then(|bytes| u64::try_from(bytes.max(0)).ok());
    status.lag.bytes = bytes(row.try_get(2)?);
    status.slot_retained_bytes = bytes(row.try_get(3)?);
    Ok(())
}

/// Counts the rows that were not sent; `None` where the table can't be looked at, or nothing tells them.
pub(super) async fn unsent(
    client: &Client,
    source: &SourceConfig,
) -> Result<Option<Unsent>, tokio_postgres::Error> {
    let Ok(name) = source.table_name() else {
        return Ok(None);
    };
    match inspect(client, &name.schema, &name.table, &source.columns).await {
        Ok(table) => count_unsent(client, source, &table.layout).await,
        Err(_) => Ok(None),
    }
}

/// Counts the rows that were not sent; `None` where nothing tells them.
async fn count_unsent(
    client: &Client,
    source: &SourceConfig,
    layout: &Layout,
) -> Result<Option<Unsent>, tokio_postgres::Error> {
    match Question::new(source.mark, layout, &lease_key(source), None) {
        Some(question) => question.ask(client).await.map(Some),
        None => Ok(None),
    }
}
