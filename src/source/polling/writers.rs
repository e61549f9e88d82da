//! The transactions that were writing to the outbox when polling began.
//!
//! A transaction stands in the log before others see it, and it keeps its locks until they do. So once none of these is
//! left, every row is visible whose commit stood in the log when polling began.

use std::collections::BTreeSet;

use super::locks::Locks;
use super::{CaughtUp, PollError};
use crate::postgres::Session;
use crate::source::holes::VirtualTransaction;

pub(super) struct Writers {
    locks: Locks,
    left: BTreeSet<VirtualTransaction>,
}

impl Writers {
    /// Notes who writes now; nobody where nobody is waited for.
    pub(super) async fn prepare(
        session: &Session,
        table: &str,
        caught_up: CaughtUp,
    ) -> Result<Self, PollError> {
        let mut locks = Locks::prepare(session, table).await?;
        let left = match caught_up {
            CaughtUp::WithTheTable => BTreeSet::new(),
            CaughtUp::WithTheWriters => locks.read(session).await?.holders.into_keys().collect(),
        };
        Ok(Self { locks, left })
    }

    /// Whether none of them is left; to be asked before a turn reads.
    ///
    /// One that is prepared meanwhile ends here: its commit comes later than polling began.
    pub(super) async fn have_ended(&mut self, session: &Session) -> Result<bool, PollError> {
        if !self.left.is_empty() {
            let reading = self.locks.read(session).await?;
            self.left
                .retain(|holder| reading.holders.contains_key(holder));
        }
        Ok(self.left.is_empty())
    }
}
