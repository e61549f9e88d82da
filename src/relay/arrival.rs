//! What is looked up of a batch before the machine takes it: which of its rows were marked, skipped or held before.

use std::collections::HashSet;

use super::Run;
use super::machine::{Arrival, Input};
use crate::mark::MarkError;
use crate::row::OutboxRow;
use crate::source::{Batch, SourceError};
use crate::state::Commits;

impl Run<'_> {
    /// Looks up what the source handed out.
    pub(super) async fn arrived(&mut self, batch: Result<Batch, SourceError>) -> Input {
        let batch = match batch {
            Ok(batch) => batch,
            Err(failure) => return Input::SourceEnded(failure),
        };
        self.relay.metrics.read(batch.rows.len());
        match self.known_before(&batch.rows).await {
            Ok(known) => Input::Arrived(Arrival { batch, known }),
            Err(failure) => Input::LookUpFailed(failure),
        }
    }

    /// Tells for each row whether it was settled by an earlier session, or the source was told to leave it out.
    async fn known_before(&mut self, rows: &[OutboxRow]) -> Result<Vec<bool>, MarkError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let skipped = self.skipped_ids(rows).await?;
        let mut known = match self.source.is_stream() {
            true => {
                let marks = self.machine.marks_mut();
                marks.settled_before(&self.sql.client, rows).await?
            }
            false => vec![false; rows.len()],
        };
        let is_skipped = |row: &OutboxRow| {
            let id = row.id.as_ref().filter(|_| !skipped.is_empty());
            self.state.skips(row) || id.is_some_and(|id| skipped.contains(&id.to_string()))
        };
        for (known, row) in known.iter_mut().zip(rows) {
            *known |= is_skipped(row) || self.source.holds(row);
        }
        Ok(known)
    }

    /// The ids of those of these rows that the first start skipped by their ids.
    async fn skipped_ids(&self, rows: &[OutboxRow]) -> Result<HashSet<String>, MarkError> {
        // A source of unsent rows hands out none of them.
        if self.source.kind().repeats_held_rows() {
            return Ok(HashSet::new());
        }
        let commits = match self.source.is_stream() {
            true => Commits::Known,
            false => Commits::Bounded,
        };
        let outbox = self.machine.terms().layout.outbox();
        let client = &self.sql.client;
        let asked = self.state.skipped_ids(client, &outbox, rows, commits);
        asked.await.map_err(MarkError::sql("look skipped rows up"))
    }
}
