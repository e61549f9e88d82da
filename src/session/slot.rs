//! The slot and publication of a session: there before the table is read.

use tracing::warn;

use super::{OpenError, Opening, connect};
use crate::config::Mode;
use crate::migrate::{self, Creates};
use crate::postgres;
use crate::state::OutboxState;

impl Opening<'_> {
    /// Creates publication and slot before the table is read, unless they were there and are lost.
    pub(super) async fn create_slot(
        &self,
        sql: &postgres::Session,
        state: &OutboxState,
    ) -> Result<(), OpenError> {
        if self.config.source.mode == Mode::Polling {
            return Ok(());
        }
        let replication = &self.config.source.replication;
        if state.caught_up {
            let slot = crate::slot::status(&sql.client, &replication.slot).await;
            let slot = slot.map_err(|source| OpenError::Halt {
                reason: crate::telemetry::chain(&source),
                remedy: String::new(),
            })?;
            if slot.is_none() {
                return Err(OpenError::Halt {
                    reason: format!("slot `{}` is gone, and rows may have gone with it", replication.slot),
                    remedy: "see `outboxd slot status`; `outboxd migrate` creates a new one and the table is read again".to_owned(),
                });
            }
            return Ok(());
        }
        let denied = migrate::ensure(&sql.client, self.config, Creates::Everything).await?;
        if denied.is_empty() {
            Ok(())
        } else {
            Err(OpenError::Missing(denied))
        }
    }

    /// Moves the slot behind the transaction that it can't send, once the table was read beyond it.
    pub(super) async fn pass(&mut self) -> Result<(), OpenError> {
        let Some(commit_lsn) = self.legacy.impassable else {
            return Ok(());
        };
        let session = connect(&self.options, "slot").await?;
        let slot = &self.config.source.replication.slot;
        crate::slot::advance(&session.client, slot, commit_lsn).await?;
        self.legacy.impassable = None;
        warn!(%slot, %commit_lsn, "the slot has passed a transaction that PostgreSQL cannot send");
        Ok(())
    }
}
