//! What the database alone can say of an outbox: its lease, its slot, and what was not sent.
//!
//! Reads only. Counts stop at a limit, so that the question costs little on a table of any size.

use std::time::Duration;

use tokio_postgres::Client;

use super::{Lag, Lease, Peer, Role, State, Status, StatusError};
use crate::config::{Mark, Mode, SourceConfig};
use crate::mark::ledger::segment_numbers_sql;
use crate::names;
use crate::postgres::{self, Session};
use crate::retention;
use crate::session::lease_key;

/// Rows counted at most.
const ROWS_MAX: i64 = 100_000;
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '5s'";

const COLUMNS: &str = "SELECT coalesce(array_agg(attname::text), '{}') FROM pg_attribute \
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";

const LEASE: &str = "SELECT owner, epoch, NOT released AND clock_timestamp() - at < ttl, \
    extract(epoch FROM clock_timestamp() - at)::float8 FROM outboxd.lease WHERE outbox = $1";

const HELD: &str = "SELECT (SELECT count(*) FROM outboxd.blocked \
    WHERE outbox = $1 AND kind = 'aggregate' AND state <> 'released'), \
    (SELECT count(*) FROM (SELECT FROM outboxd.kept WHERE outbox = $1 AND state = 'dead' LIMIT 100000) dead)";

const SLOT: &str = "SELECT confirmed_flush_lsn::text, wal_status, \
    pg_wal_lsn_diff(here.lsn, confirmed_flush_lsn)::int8, \
    pg_wal_lsn_diff(here.lsn, restart_lsn)::int8 FROM pg_replication_slots, \
    (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() \
    END AS lsn) here WHERE slot_name = $1 AND database = current_database()";

const SENT_SEQ: &str = "SELECT max(l.last_seq) FROM outboxd.ledger l JOIN outboxd.outbox o \
    USING (outbox, generation) WHERE outbox = $1";

// What is resolved, from the ledger; everything else is a hole or above the highest number. A segment that
// is closed counts whole. The holes are looked up by range: nothing is read twice, nothing sent is read.
fn unsent_by_ledger() -> String {
    format!(
        "WITH segments AS (\
      SELECT l.segment, bool_or(l.closed) AS closed FROM outboxd.ledger l \
      JOIN outboxd.outbox o USING (outbox, generation) WHERE outbox = $1 GROUP BY l.segment), \
    resolved AS (\
      SELECT {} AS numbers FROM segments WHERE closed \
      UNION ALL SELECT unnest(l.sent) FROM outboxd.ledger l JOIN outboxd.outbox o USING (outbox, generation) \
      JOIN segments s USING (segment) WHERE outbox = $1 AND NOT s.closed \
      UNION ALL SELECT unnest(o.skipped) FROM outboxd.outbox o WHERE o.outbox = $1), \
    holes AS (SELECT unnest(int8multirange(int8range(NULL, NULL)) - \
      coalesce((SELECT range_agg(numbers) FROM resolved), int8multirange())) AS numbers)",
        segment_numbers_sql("segment")
    )
}

/// Asks the database; `no_relay` says why it has to.
pub async fn ask(source: &SourceConfig, no_relay: &str) -> Result<Status, StatusError> {
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
    session: &Session,
    source: &SourceConfig,
    status: &mut Status,
) -> Result<bool, tokio_postgres::Error> {
    let client = &session.client;
    client.batch_execute(STATEMENT_TIMEOUT).await?;
    let Ok(name) = source.table_name() else {
        return Ok(false);
    };
    let table = name.quoted();
    let columns: Vec<String> = client.query_one(COLUMNS, &[&table]).await?.try_get(0)?;
    if columns.is_empty() {
        return Ok(false);
    }
    status.postgres = Peer {
        is_up: Some(true),
        error: None,
    };
    status.kept = retention::kept(client, &table).await?;
    if has_state(client).await? {
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
        if source.mark == Mark::Ledger {
            return Ok(true);
        }
    }
    if source.mode == Mode::Replication {
        read_slot(client, &source.replication.slot, status).await?;
    }
    read_unsent(client, source, &table, &columns, status).await?;
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
        format!("no relay holds the lease, the last one until {age} ago")
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
    status.blocked_aggregates = u64::try_from(row.try_get::<_, i64>(0)?).ok();
    status.dead_letters = u64::try_from(row.try_get::<_, i64>(1)?).ok();
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

async fn read_unsent(
    client: &Client,
    source: &SourceConfig,
    table: &str,
    columns: &[String],
    status: &mut Status,
) -> Result<(), tokio_postgres::Error> {
    let (mark, names) = (source.mark, &source.columns);
    let has =
        |ours: &str| !names.is_taken(ours) && columns.iter().any(|column| column == names.of(ours));
    let (seq, sent_at) = (names.sql("seq"), names.sql("sent_at"));
    let created_at = match has("created_at") {
        true => format!("o.{}", names.sql("created_at")),
        false => "NULL::timestamptz".to_owned(),
    };
    let unsent = match mark {
        Mark::Ledger if has("seq") => format!(
            "SELECT row.created_at FROM holes, LATERAL (SELECT {created_at} AS created_at FROM {table} o \
             WHERE o.{seq} >= coalesce(lower(holes.numbers), -9223372036854775808) \
             AND o.{seq} <= coalesce(upper(holes.numbers) - 1, 9223372036854775807) \
             ORDER BY o.{seq} LIMIT {ROWS_MAX} + 1) row"
        ),
        Mark::SentAt if has("sent_at") => {
            format!("SELECT {created_at} AS created_at FROM {table} o WHERE o.{sent_at} IS NULL")
        }
        Mark::Delete => format!("SELECT {created_at} AS created_at FROM {table} o"),
        // Nothing is recorded of single rows.
        Mark::Ledger | Mark::SentAt | Mark::None => return Ok(()),
    };
    let count = format!(
        "SELECT count(*), extract(epoch FROM clock_timestamp() - min(created_at))::float8 \
         FROM ({unsent} LIMIT {ROWS_MAX} + 1) unsent"
    );
    let row = match mark {
        Mark::Ledger => {
            let sql = format!("{} {count}", unsent_by_ledger());
            client.query_one(&sql, &[&status.table]).await?
        }
        _ => client.query_one(&count, &[]).await?,
    };
    let (rows, age): (i64, Option<f64>) = (row.try_get(0)?, row.try_get(1)?);
    status.lag = Lag {
        rows: u64::try_from(rows.min(ROWS_MAX)).ok(),
        rows_at_least: rows > ROWS_MAX,
        bytes: status.lag.bytes,
        seconds: None,
    };
    status.oldest_unsent_age_seconds = age.map(|age| age.max(0.0));
    Ok(())
}
