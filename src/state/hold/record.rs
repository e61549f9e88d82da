//! Recording rows that were put aside.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_postgres::Client;
use tracing::warn;

use super::entry::{HoldEntry, KeptRow};
use super::statement::{self, EntryColumns, KeptColumns, parameters};
use crate::mark::{FencingToken, MarkError, Statement};
use crate::row::Layout;

/// Which held rows are kept whole, besides dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyPolicy {
    /// All: nothing marks the table's rows, so they can't be told from the others; or they were kept before.
    All,
    /// Those that are not visible in the table: the stream brings rows that were deleted since, and some that are not
    /// visible yet, of which the copy goes when they are released.
    Missing,
    /// None: the rows were just read from the table.
    None,
}

/// One checkpoint of rows that were put aside, ready to run.
#[derive(Debug)]
pub(crate) struct HoldCheckpoint {
    pub token: FencingToken,
    pub generation: i32,
    pub layout: Arc<Layout>,
    pub whole: CopyPolicy,
    pub entries: Vec<HoldEntry>,
    pub kept: Vec<KeptRow>,
    /// Marks dead letters in the table, where rows are marked one by one.
    pub mark: Option<Arc<Statement>>,
}

impl HoldCheckpoint {
    /// Puts what errors say into other words: they may be ours, and the database of another encoding.
    pub(crate) fn reword(&mut self, words: impl Fn(&str) -> String) {
        let entries = self.entries.iter_mut().map(|entry| &mut entry.error);
        let kept = self.kept.iter_mut().map(|row| &mut row.error);
        for error in entries.chain(kept) {
            *error = words(error);
        }
    }

    /// Records the rows; all are recorded or it has to be run again. Returns the bytes of the held rows that are kept.
    ///
    /// Errors: `NotLeader` when the lease moved; after any other the outcome is unknown.
    pub(crate) async fn run(&self, client: &Client) -> Result<u64, MarkError> {
        let missing = match self.whole {
            CopyPolicy::Missing => self.missing(client).await?,
            CopyPolicy::All | CopyPolicy::None => HashSet::new(),
        };
        let is_kept = |row: &&KeptRow| {
            row.is_dead || self.whole == CopyPolicy::All || missing.contains(&row.key())
        };
        let kept: Vec<_> = self.kept.iter().filter(is_kept).collect();
        self.record(client, &kept).await?;
        if let Some(mark) = &self.mark {
            let outcome = mark.run(client).await?;
            if let Some(refusal) = outcome.refused.first() {
                warn!(event_id = %refusal.row.id, error = refusal.error, "a dead letter can't be marked in the table");
            }
        }
        let held = kept.iter().filter(|row| !row.is_dead);
        Ok(held.map(|row| row.row.size() as u64).sum())
    }

    /// The held rows that do not stand in the table.
    async fn missing(&self, client: &Client) -> Result<HashSet<(Option<i64>, String)>, MarkError> {
        let held = self.kept.iter().filter(|row| !row.is_dead);
        let mut missing: HashSet<_> = held.map(KeptRow::key).collect();
        if missing.is_empty() {
            return Ok(missing);
        }
        let layout = &self.layout;
        let (table, id) = (layout.sql_name(), layout.text_of(layout.id));
        let seqs: Vec<i64> = missing.iter().filter_map(|(seq, _)| *seq).collect();
        let found = if seqs.len() == missing.len() {
            let seq = layout.names.sql("seq");
            let sql = format!(
                "SELECT o.{seq}::int8, {id} FROM {table} AS o WHERE o.{seq} = ANY ($1::int8[])"
            );
            client.query(&sql, &[&seqs]).await
        } else {
            let ids: Vec<_> = missing.iter().map(|(_, id)| id.as_str()).collect();
            let sql = format!(
                "SELECT NULL::int8, {id} FROM {table} AS o WHERE {}",
                layout.id_is_among("$1")
            );
            client.query(&sql, &[&ids]).await
        };
        for row in &found.map_err(MarkError::sql("look held rows up"))? {
            let id: Option<String> = row.get(1);
            missing.remove(&(row.get(0), id.unwrap_or_default()));
        }
        Ok(missing)
    }

    async fn record(&self, client: &Client, kept: &[&KeptRow]) -> Result<(), MarkError> {
        if kept.is_empty() && self.entries.is_empty() {
            return Ok(());
        }
        let kept = KeptColumns::of(kept, &self.layout);
        let entries = EntryColumns::of(&self.entries);
        let parameters = parameters(&self.token, &self.generation, &kept, &entries);
        let row = client.query_one(&statement::sql(), &parameters).await;
        let row = row.map_err(MarkError::sql("record what was put aside"))?;
        match row.get::<_, i64>(0) {
            0 => Err(MarkError::NotLeader {
                outbox: self.token.outbox.clone(),
            }),
            _ => Ok(()),
        }
    }
}
