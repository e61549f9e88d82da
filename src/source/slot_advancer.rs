//! Moves the slot while the table is read in its place: behind what was read, delivered and marked.
//!
//! Never decides how far: it is told what may be confirmed, as a stream is.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info};

use crate::postgres::slot::{self, SlotError, SlotPosition};
use crate::postgres::{Class, SqlConnection};
use crate::row::Lsn;

/// How far a slot may lag, in bytes of WAL, when a stream begins on it: what one walsender sends in about a second of
/// one-row transactions. Below this a stream is there sooner than the table is read.
pub(crate) const LAG_BYTES_MAX: u64 = 64 << 20;
/// How often the slot is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What moves one slot, on a connection of its own: moving takes as long as the server needs to skim its log.
pub struct SlotAdvancer {
    pub session: SqlConnection,
    pub slot: String,
}

impl SlotAdvancer {
    /// Follows what may be confirmed, and tells where the slot stands.
    ///
    /// Errors: the connection's end, or what keeps the slot from ever moving; a slot in use is tried again.
    /// Cancel-safe: yes; the server ends a move that has begun.
    pub(super) async fn run(
        self,
        confirmed: watch::Receiver<Lsn>,
        told: watch::Sender<Option<SlotPosition>>,
    ) -> Result<Infallible, SlotError> {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let position = slot::position(&self.session.client, &self.slot).await?;
            told.send_replace(Some(position));
            let upto = *confirmed.borrow();
            if position.lag_bytes() > LAG_BYTES_MAX && upto > position.confirmed {
                self.advance(position, upto).await?;
            }
        }
    }

    async fn advance(&self, position: SlotPosition, upto: Lsn) -> Result<(), SlotError> {
        let (slot, from, began) = (&self.slot, position.confirmed, Instant::now());
        match slot::advance(&self.session.client, slot, upto).await {
            Ok(()) => {
                let (bytes, elapsed_ms) = (upto.0 - from.0, began.elapsed().as_millis() as u64);
                info!(slot, %from, %upto, bytes, elapsed_ms, "the slot has passed what was read from the table");
                Ok(())
            }
            // For a moment somebody keeps it from the idle timeout, or a killed relay's move goes on.
            Err(SlotError::Query { source, .. }) if matches!(source.class(), Class::SlotInUse) => {
                debug!(slot, "the slot is in use and is moved later");
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}
