//! How far in the log everything is visible: a position, and who may have committed before it unseen.
//!
//! A transaction stands in the log before others see it, and it keeps its locks until they do. So once none is left of
//! those that held the lock after a position was read, every row is visible whose commit stands before that position.

use std::collections::BTreeSet;

use tokio_postgres::Statement;
use tokio_postgres::types::PgLsn;

use super::locks::Locks;
use super::{CaughtUp, PollError};
use crate::postgres::SqlConnection;
use crate::row::Lsn;
use crate::source::holes::VirtualTransaction;

pub(super) struct Writers {
    locks: Locks,
    position: Statement,
    says: CaughtUp,
    round: Option<Round>,
    /// A round has ended: what was being written as polling began is visible.
    have_ended: bool,
}

/// A position, and who is left of those that wrote after it was read.
struct Round {
    position: Lsn,
    left: BTreeSet<VirtualTransaction>,
}

impl Writers {
    pub(super) async fn prepare(
        session: &SqlConnection,
        table: &str,
        says: CaughtUp,
    ) -> Result<Self, PollError> {
        let query = "SELECT pg_catalog.pg_current_wal_flush_lsn()";
        let position = session.client.prepare(query).await;
        Ok(Self {
            locks: Locks::prepare(session, table).await?,
            position: PollError::check(session, "prepare the flush position", position).await?,
            says,
            round: None,
            have_ended: false,
        })
    }

    /// The position before which every commit is visible to the statements that follow; to be asked before a turn reads.
    ///
    /// It stays the same until [`passed`](Self::passed). A transaction that is prepared meanwhile counts as ended: its
    /// commit comes later than the position was read.
    pub(super) async fn look(&mut self, session: &SqlConnection) -> Result<Option<Lsn>, PollError> {
        if self.says == CaughtUp::WithTheTable {
            return Ok(None);
        }
        let is_over = self
            .round
            .as_ref()
            .is_some_and(|round| round.left.is_empty());
        if !is_over && self.locks.is_due() {
            self.look_at_locks(session).await?;
        }
        let round = self.round.as_ref().filter(|round| round.left.is_empty());
        self.have_ended |= round.is_some();
        Ok(round.map(|round| round.position))
    }

    async fn look_at_locks(&mut self, session: &SqlConnection) -> Result<(), PollError> {
        let Some(round) = &mut self.round else {
            // Before the locks: who writes a commit from now on is among them.
            let position = self.flushed(session).await?;
            let left = self
                .locks
                .read(session)
                .await?
                .holders
                .into_keys()
                .collect();
            self.round = Some(Round { position, left });
            return Ok(());
        };
        let reading = self.locks.read(session).await?;
        round
            .left
            .retain(|holder| reading.holders.contains_key(holder));
        Ok(())
    }

    async fn flushed(&self, session: &SqlConnection) -> Result<Lsn, PollError> {
        let row = session.client.query_one(&self.position, &[]).await;
        let row = PollError::check(session, "read the flush position", row).await?;
        Ok(Lsn(u64::from(row.get::<_, PgLsn>(0))))
    }

    /// Everything before the position was handed over: the next look begins with a new one.
    pub(super) fn passed(&mut self) {
        self.round = None;
    }

    /// Whether nothing keeps a turn that found no more rows from saying so.
    pub(super) fn have_ended(&self) -> bool {
        self.have_ended || self.says != CaughtUp::WithTheWriters
    }
}
