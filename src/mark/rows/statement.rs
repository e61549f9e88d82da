//! Running a mark: every row of it ends as marked, gone, waiting or refused.
//!
//! A statement that fails for one row fails for all: the rows are halved until the one is found. A statement that changes
//! fewer rows than it should is followed by a look at the table.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::record;
use super::sql::{self, Batch, Recording, Sql};
use crate::core::Delivered;
use crate::mark::evidence::{Snapshot, Unmarked, judge};
use crate::mark::{FencingToken, MarkError, MarkOutcome, RefusedMark};
use crate::postgres::{Class, PostgresError};

/// What may fail before the rest of the rows is left for later: halving finds some rows at fault among thousands.
const FAILURES_MAX: u32 = 64;
const NOTHING_CHANGES: &str =
    "the statement changes nothing: a trigger or a rule keeps the row as it is";
/// A lock is waited for before it fails.
const LOCK_FAILURE: u32 = 8;

/// One `UPDATE` or `DELETE` of rows.
#[derive(Debug)]
pub struct RowStatement {
    pub(crate) token: FencingToken,
    pub(super) sql: Arc<Sql>,
    pub(crate) rows: Vec<Delivered>,
    pub(crate) recording: Recording,
    /// Whether the session has looked at rows that it marked: what a trigger does after a statement, no statement tells.
    pub(super) was_looked_at: Arc<AtomicBool>,
}

/// What a failure says of the rows of a statement.
enum Reach {
    /// One of them, or a few, may be the reason.
    SomeRows,
    /// Somebody holds a lock: on one of the rows, or on the table.
    Lock,
    /// No row can be marked until a person acts.
    AllRows,
    /// Nothing: it passes.
    Passing,
}

fn reach(error: &PostgresError) -> Reach {
    let code = error.sqlstate().unwrap_or_default();
    match (error.class(), code.get(..2).unwrap_or_default()) {
        (Class::Lost | Class::Shutdown | Class::TooManyConnections, _) => Reach::Passing,
        _ if code == "55P03" => Reach::Lock,
        // Not in a prerequisite state, a read-only transaction, a feature that is not supported, syntax or access.
        _ if code == "55000" || code == "25006" => Reach::AllRows,
        (_, "0A" | "42") => Reach::AllRows,
        // Rollbacks, resources, an operator's intervention, the system.
        (_, "08" | "25" | "40" | "53" | "55" | "57" | "58" | "F0" | "XX" | "") => Reach::Passing,
        // Constraints, what triggers and functions raise, values.
        _ => Reach::SomeRows,
    }
}

impl RowStatement {
    /// What it sends first.
    pub(crate) fn sql(&self) -> String {
        self.sql
            .mark(&Batch::of(&self.rows, &self.sql), self.recording)
    }

    pub(crate) async fn run(&self, client: &Client) -> Result<MarkOutcome, MarkError> {
        let mut outcome = MarkOutcome::default();
        let mut parts = vec![self.rows.as_slice()];
        let mut failures = 0;
        let mut unreached = Vec::new();
        while let Some(part) = parts.pop() {
            let failure = match self.mark(client, part, &mut outcome).await {
                Ok(()) => continue,
                Err(MarkError::Sql { what, source }) => (what, source),
                Err(other) => return Err(other),
            };
            let (what, source) = failure;
            let is_alone = part.len() == 1;
            failures += match reach(&source) {
                Reach::Passing => return Err(MarkError::Sql { what, source }),
                Reach::AllRows => return Err(MarkError::Denied { source }),
                Reach::SomeRows if is_alone => {
                    let refusal = RefusedMark::new(&part[0], source.to_string());
                    outcome.refused.push(refusal);
                    0
                }
                Reach::Lock if is_alone => {
                    unreached.push(part[0].clone());
                    0
                }
                Reach::SomeRows => 1,
                Reach::Lock => LOCK_FAILURE,
            };
            if is_alone {
                continue;
            }
            if failures > FAILURES_MAX {
                unreached.extend_from_slice(part);
                unreached.extend(parts.drain(..).flatten().cloned());
                if unreached.len() == self.rows.len() {
                    return Err(MarkError::Sql { what, source });
                }
                break;
            }
            let (left, right) = part.split_at(part.len() / 2);
            parts.extend([right, left]);
        }
        self.owe(client, &unreached).await?;
        outcome.waiting.extend(unreached);
        if matches!(self.recording, Recording::Payment) && outcome.is_complete() {
            record::pay(client, &self.token).await?;
        }
        self.name_aggregates(client, &mut outcome).await?;
        Ok(outcome)
    }

    /// Records rows that no statement reached: the stream may bring them again, whoever marks them later.
    async fn owe(&self, client: &Client, rows: &[Delivered]) -> Result<(), MarkError> {
        match self.recording {
            Recording::Marks(resolved) => {
                record::note(client, &self.token, &self.sql, (&[], rows), resolved).await
            }
            Recording::Nothing | Recording::Payment => Ok(()),
        }
    }

    /// Reads to which aggregates the refused rows belong. One that is gone by now needs no mark.
    async fn name_aggregates(
        &self,
        client: &Client,
        outcome: &mut MarkOutcome,
    ) -> Result<(), MarkError> {
        if outcome.refused.is_empty() {
            return Ok(());
        }
        let refused = outcome.refused.iter();
        let rows: Vec<_> = refused.map(|refusal| refusal.row.clone()).collect();
        let batch = Batch::of(&rows, &self.sql);
        let query = self.sql.aggregates(&batch);
        let found = client.query(&query, &batch.values(&[])).await;
        let found = found.map_err(MarkError::sql("read refused rows"))?;
        let mut aggregates: HashMap<String, (Option<String>, Option<String>)> = found
            .iter()
            .map(|row| (row.get(0), (row.get(1), row.get(2))))
            .collect();
        outcome.refused.retain_mut(|refusal| {
            let found = aggregates.remove(&sql::key(&refusal.row, &self.sql));
            let is_there = found.is_some();
            (refusal.aggregate_type, refusal.aggregate_id) = found.unwrap_or_default();
            is_there
        });
        Ok(())
    }

    /// Marks some rows in one statement, and looks where it did not mark all of them.
    async fn mark(
        &self,
        client: &Client,
        rows: &[Delivered],
        outcome: &mut MarkOutcome,
    ) -> Result<(), MarkError> {
        let is_complete = self.change(client, rows).await? == rows.len() as u64;
        if is_complete && self.was_looked_at.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (standing, _) = self.look(client, rows).await?;
        let standing: Vec<_> = self.of(rows, &standing);
        if !standing.is_empty() {
            self.change(client, &standing).await?;
        }
        let (still, snapshot) = self.look(client, rows).await?;
        self.was_looked_at.store(true, Ordering::Relaxed);
        if is_complete && still.is_empty() {
            return Ok(());
        }
        let stood: HashSet<_> = standing
            .iter()
            .map(|row| sql::key(row, &self.sql))
            .collect();
        let mut unmarked = Vec::new();
        let mut waiting = Vec::new();
        for row in rows {
            let key = sql::key(row, &self.sql);
            match judge(row, still.contains(&key), &snapshot) {
                Unmarked::Gone => unmarked.push(row.clone()),
                // It became visible after the marks.
                Unmarked::Refused if !stood.contains(&key) => waiting.push(row.clone()),
                Unmarked::Refused => outcome.refused.push(RefusedMark::new(row, NOTHING_CHANGES)),
                Unmarked::Waits(origin) => waiting.push(Delivered {
                    origin,
                    ..row.clone()
                }),
            }
        }
        if let Recording::Marks(resolved) = self.recording {
            let token = &self.token;
            record::note(client, token, &self.sql, (&unmarked, &waiting), resolved).await?;
        }
        outcome.waiting.extend(waiting);
        Ok(())
    }

    fn of(&self, rows: &[Delivered], keys: &HashSet<String>) -> Vec<Delivered> {
        let is_of = |row: &&Delivered| keys.contains(&sql::key(row, &self.sql));
        rows.iter().filter(is_of).cloned().collect()
    }

    /// Runs the statement; returns how many rows it marked.
    async fn change(&self, client: &Client, rows: &[Delivered]) -> Result<u64, MarkError> {
        let FencingToken { outbox, epoch } = &self.token;
        let batch = Batch::of(rows, &self.sql);
        let high_lsn = rows.iter().map(|row| row.lsn).max().unwrap_or_default();
        let (high_lsn, resolved) = match self.recording {
            Recording::Nothing | Recording::Payment => (String::new(), String::new()),
            Recording::Marks(resolved) => (high_lsn.to_string(), resolved.to_string()),
        };
        let mut before: Vec<&(dyn ToSql + Sync)> = vec![outbox, epoch];
        if let Recording::Marks(_) = self.recording {
            before.extend([&high_lsn as &(dyn ToSql + Sync), &resolved]);
        }
        let query = self.sql.mark(&batch, self.recording);
        let row = client.query_one(&query, &batch.values(&before)).await;
        let row = row.map_err(MarkError::sql("mark rows as sent"))?;
        if row.get::<_, i64>(0) == 0 {
            return Err(MarkError::NotLeader {
                outbox: outbox.clone(),
            });
        }
        Ok(u64::try_from(row.get::<_, i64>(1)).unwrap_or(0))
    }

    /// Reads which rows still stand unsent, as they were read, and what the snapshot shows.
    async fn look(
        &self,
        client: &Client,
        rows: &[Delivered],
    ) -> Result<(HashSet<String>, Snapshot), MarkError> {
        let batch = Batch::of(rows, &self.sql);
        let query = self.sql.standing(&batch);
        let row = client.query_one(&query, &batch.values(&[])).await;
        let row = row.map_err(MarkError::sql("look for unmarked rows"))?;
        let snapshot =
            Snapshot::parse(row.get(0)).expect("PostgreSQL prints its snapshot as it says");
        Ok((row.get::<_, Vec<String>>(1).into_iter().collect(), snapshot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::ServerError;

    #[test]
    fn a_failure_reaches_one_row_all_of_them_or_none() {
        let of = |code: &str| reach(&PostgresError::Server(ServerError::new(code, "")));
        for code in [
            "23503", "23505", "23514", "P0001", "22023", "27000", "38000", "44000",
        ] {
            assert!(matches!(of(code), Reach::SomeRows), "{code}");
        }
        for code in ["42501", "42P01", "42703", "55000", "25006", "0A000"] {
            assert!(matches!(of(code), Reach::AllRows), "{code}");
        }
        for code in [
            "40001", "40P01", "57014", "57P01", "53100", "08006", "XX000",
        ] {
            assert!(matches!(of(code), Reach::Passing), "{code}");
        }
        assert!(matches!(of("55P03"), Reach::Lock));
    }
}
