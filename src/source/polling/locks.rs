//! Who may still fill a hole, read from `pg_locks`.
//!
//! Owns the query and its pace: reading `pg_locks` locks all partitions of the server's lock table for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_postgres::Statement;
use tracing::warn;

use super::PollError;
use crate::postgres::SqlConnection;
use crate::row::Lsn;
use crate::source::holes::{Holes, LockReading, Snapshot, VirtualTransaction, Xid};

/// The least time between two readings.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// A reading is followed by so many times its duration without one: 5 % of the time.
const PAUSE_FACTOR: u32 = 19;
/// A transaction that stays prepared for so long is forgotten, as long as nobody says otherwise.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// One row per holder of the lock that INSERT takes on the table or a partition: its virtual transaction, whether it is
/// prepared, its top-level transaction id if it has one, and the statement's snapshot.
///
/// A parent's id is older than its subtransactions', so the oldest of a holder's is the top-level one; `pg_locks` shows 32 bits
/// of it, completed from the snapshot. The relation lock is never weaker or stronger for an INSERT: VACUUM takes
/// ShareUpdateExclusive. `n/0` has ended.
const QUERY: &str = "\
    WITH held AS MATERIALIZED (
        SELECT locktype, database, relation, transactionid, virtualtransaction, pid
        FROM pg_catalog.pg_locks
        WHERE granted AND virtualtransaction NOT LIKE '%/0'
            AND (locktype = 'relation' AND mode = 'RowExclusiveLock'
                OR locktype = 'transactionid' AND mode = 'ExclusiveLock')
    ), instant AS MATERIALIZED (
        SELECT pg_catalog.pg_current_snapshot() AS snapshot,
            pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8 AS next
    ), holder AS (
        SELECT virtualtransaction, bool_or(pid IS NULL) AS prepared
        FROM held
        WHERE locktype = 'relation'
            AND database = (SELECT oid FROM pg_catalog.pg_database
                WHERE datname = pg_catalog.current_database())
            AND (relation = $1 OR relation IN (SELECT relid FROM pg_catalog.pg_partition_tree($1)))
        GROUP BY virtualtransaction
    )
    SELECT holder.virtualtransaction, holder.prepared, instant.snapshot::text,
        (SELECT min(instant.next - 2147483648
            + (held.transactionid::text::int8 - instant.next % 4294967296 + 6442450944) % 4294967296)
        FROM held
        WHERE held.locktype = 'transactionid'
            AND held.virtualtransaction = holder.virtualtransaction)
    FROM holder, instant";

/// Reads the locks no more often than they may be read.
pub(crate) struct Locks {
    table: u32,
    statement: Statement,
    /// When the last reading ended, and how long readings take.
    last: Option<(Instant, Duration)>,
    /// The prepared transactions that hold the lock, since when.
    prepared: BTreeMap<VirtualTransaction, Instant>,
    warned_at: Option<Instant>,
}

impl Locks {
    pub(crate) async fn prepare(session: &SqlConnection, table: &str) -> Result<Self, PollError> {
        let oid = session
            .client
            .query_one("SELECT $1::text::regclass::oid", &[&table])
            .await;
        let oid = PollError::check(session, "find the table", oid).await?;
        let statement = session.client.prepare(QUERY).await;
        Ok(Self {
            table: oid.get(0),
            statement: PollError::check(session, "prepare the lock reading", statement).await?,
            last: None,
            prepared: BTreeMap::new(),
            warned_at: None,
        })
    }

    /// Whether the locks may be read again.
    pub(super) fn is_due(&self) -> bool {
        self.last
            .is_none_or(|(at, cost)| at.elapsed() >= PAUSE_MIN.max(cost * PAUSE_FACTOR))
    }

    /// How long a reading takes.
    pub(super) fn cost(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |(_, cost)| cost)
    }

    pub(crate) async fn read(&mut self, session: &SqlConnection) -> Result<LockReading, PollError> {
        let began = Instant::now();
        let rows = session.client.query(&self.statement, &[&self.table]).await;
        let rows = PollError::check(session, "read the locks", rows).await?;
        self.last = Some((Instant::now(), began.elapsed()));
        let (mut holders, mut prepared) = (BTreeMap::new(), BTreeSet::new());
        let mut snapshot = Snapshot::default();
        for row in &rows {
            let holder: VirtualTransaction = row.get::<_, &str>(0).into();
            if row.get(1) {
                prepared.insert(holder.clone());
            }
            let seen = row.get::<_, &str>(2).parse();
            snapshot = seen.map_err(|_| PollError::Unexpected("a snapshot it does not print"))?;
            let xid: Option<i64> = row.get(3);
            holders.insert(holder, xid.and_then(|xid| Xid::try_from(xid).ok()));
        }
        self.note_prepared(prepared);
        Ok(LockReading {
            holders,
            snapshot,
            position: Lsn(0),
        })
    }

    fn note_prepared(&mut self, prepared: BTreeSet<VirtualTransaction>) {
        self.prepared.retain(|holder, _| prepared.contains(holder));
        for holder in prepared {
            self.prepared.entry(holder).or_insert_with(Instant::now);
        }
    }

    /// Tells of prepared transactions that nobody ends while numbers wait for them, once a minute at most.
    pub(in crate::source) fn warn_of_forgotten(&mut self, holes: &Holes) {
        let is_told = |at: Instant| at.elapsed() < FORGOTTEN;
        if self.prepared.is_empty() || self.warned_at.is_some_and(is_told) {
            return;
        }
        let forgotten = |(holder, since): &(&VirtualTransaction, &Instant)| {
            since.elapsed() >= FORGOTTEN && holes.waits_for(holder)
        };
        let transactions = self.prepared.iter().filter(forgotten).count();
        if transactions > 0 {
            let numbers = holes.len();
            warn!(
                transactions,
                numbers,
                "rows wait for a prepared transaction that was never committed or rolled back"
            );
            self.warned_at = Some(Instant::now());
        }
    }
}
