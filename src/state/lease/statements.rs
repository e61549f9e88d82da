//! The statements on `outboxd.lease`.
//!
//! Each is one statement and one round trip. What they protect is said in [`super::contest`].

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::{LeaseError, LeaseRow, Version};
use crate::postgres::SqlConnection;

/// No row has this number.
const NONE: i64 = -1;

const READ: &str = "SELECT owner, epoch, renewals, released, \
    (extract(epoch FROM ttl) * 1000000)::bigint FROM outboxd.lease WHERE outbox = $1";

// Two that find no row both insert; one of them meets the other's row and does not match it.
// A row that is new begins at the WAL position: above every epoch that a deleted one had, since each take wrote WAL.
const TAKE: &str = "INSERT INTO outboxd.lease AS l (outbox, owner, epoch, renewals, released, ttl) \
    VALUES ($1, $2, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint, 0, false, $3::float8 * interval '1 microsecond') \
    ON CONFLICT (outbox) DO UPDATE SET owner = excluded.owner, epoch = l.epoch + 1, \
    renewals = l.renewals + 1, released = false, ttl = excluded.ttl, at = clock_timestamp() \
    WHERE l.epoch = $4 AND l.renewals = $5 RETURNING epoch";

const RENEW: &str = "UPDATE outboxd.lease SET renewals = renewals + 1, at = clock_timestamp() \
    WHERE outbox = $1 AND owner = $2 AND epoch = $3 AND NOT released RETURNING 1";

const RELEASE: &str = "UPDATE outboxd.lease SET released = true, at = clock_timestamp() \
    WHERE outbox = $1 AND owner = $2 AND NOT released RETURNING 1";

/// Commits of this role that wait for a synchronous standby, and longer than one that answers takes. A role sees its own
/// sessions always.
const AWAITED: &str = "SELECT pg_catalog.quote_literal(pg_catalog.current_setting('synchronous_standby_names')) \
    FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = pg_catalog.current_database() \
    AND usename = current_user AND clock_timestamp() - query_start > interval '2 s' LIMIT 1";

/// The standbys, as the server's settings name them, that a commit of ours waits for; `None` where none waits.
pub(crate) async fn awaited_standbys(session: &SqlConnection) -> Option<String> {
    let rows = session.client.query_typed(AWAITED, &[]).await.ok()?;
    rows.first()?.try_get(0).ok()
}

/// Reads the lease of an outbox; `None` where it was never taken.
pub(crate) async fn read(
    session: &SqlConnection,
    outbox: &str,
) -> Result<Option<LeaseRow>, LeaseError> {
    let answer = session
        .client
        .query_typed(READ, &[(&outbox, Type::TEXT)])
        .await;
    match answer.and_then(|rows| rows.first().map(lease_row).transpose()) {
        Ok(row) => Ok(row),
        Err(error) => Err(LeaseError::Read {
            outbox: outbox.to_owned(),
            source: session.explain(error).await,
        }),
    }
}

/// Takes the lease if it still is as `expected`, and returns the new epoch; `None` where somebody was faster.
pub(crate) async fn take(
    session: &SqlConnection,
    outbox: &str,
    owner: &str,
    ttl: Duration,
    expected: Option<Version>,
) -> Result<Option<i64>, LeaseError> {
    let (epoch, renewals) = expected.map_or((NONE, NONE), |row| (row.epoch, row.renewals));
    let ttl = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
    let answer = session
        .client
        .query_typed(
            TAKE,
            &[
                (&outbox, Type::TEXT),
                (&owner, Type::TEXT),
                (&ttl, Type::INT8),
                (&epoch, Type::INT8),
                (&renewals, Type::INT8),
            ],
        )
        .await;
    match answer.and_then(|rows| rows.first().map(|row| row.try_get(0)).transpose()) {
        Ok(epoch) => Ok(epoch),
        Err(error) => Err(LeaseError::Take {
            outbox: outbox.to_owned(),
            source: session.explain(error).await,
        }),
    }
}

/// Renews the lease.
///
/// Errors: `LeaseError::Lost` where the row is not ours any more; the caller has stopped being the holder.
pub(crate) async fn renew(
    session: &SqlConnection,
    outbox: &str,
    owner: &str,
    epoch: i64,
) -> Result<(), LeaseError> {
    let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
        (&outbox, Type::TEXT),
        (&owner, Type::TEXT),
        (&epoch, Type::INT8),
    ];
    match session.client.query_typed(RENEW, &parameters).await {
        Ok(rows) if !rows.is_empty() => Ok(()),
        Ok(_) => {
            let row = read(session, outbox).await?;
            let by = row.map_or_else(|| "nobody: the row is gone".to_owned(), |row| row.owner);
            Err(LeaseError::Lost { by, epoch })
        }
        Err(error) => Err(LeaseError::Renew {
            outbox: outbox.to_owned(),
            source: session.explain(error).await,
        }),
    }
}

/// Gives the lease back if `owner` holds it, under whichever epoch; the next one need not wait.
///
/// An owner's text is unique to one keeper, so this also undoes a take whose answer nobody waited for.
pub(crate) async fn release(
    session: &SqlConnection,
    outbox: &str,
    owner: &str,
) -> Result<(), LeaseError> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&outbox, Type::TEXT), (&owner, Type::TEXT)];
    match session.client.query_typed(RELEASE, &parameters).await {
        Ok(_) => Ok(()),
        Err(error) => Err(LeaseError::Release {
            outbox: outbox.to_owned(),
            source: session.explain(error).await,
        }),
    }
}

fn lease_row(row: &Row) -> Result<LeaseRow, tokio_postgres::Error> {
    let ttl: i64 = row.try_get(4)?;
    Ok(LeaseRow {
        owner: row.try_get(0)?,
        epoch: row.try_get(1)?,
        renewals: row.try_get(2)?,
        released: row.try_get(3)?,
        ttl: Duration::from_micros(ttl.try_into().unwrap_or(0)),
    })
}
