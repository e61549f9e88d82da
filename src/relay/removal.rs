//! Retention beside a session: old rows that were sent are removed, a batch at a time, while everything else goes on.

use std::borrow::Cow;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::marking::joined;
use super::{End, Run};
use crate::mark::{MarkError, Marks};
use crate::row::ranges::RangeSet;
use crate::source::replication::sweep::Missed;
use crate::state::retention::pass::{Pass, Passing, Scope, Step, between_passes, rest};
use crate::state::retention::{Removed, Retention, Tended};
use crate::text::chain;

/// Where marks stand in the rows, a number without a row may get one: all are looked at again so often.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);

/// Retention's side of one session.
pub(super) struct Removal {
    pass: Pass,
    every: Duration,
    due_at: Option<Instant>,
    /// The numbers whose rows go one by one, once the partitions were looked at; all where there are none.
    by_row: ByRow,
    forgotten_at: Instant,
    task: Option<JoinHandle<Attempt>>,
}

/// Which numbers of a partitioned table go by rows and not with their partition.
enum ByRow {
    All,
    /// The partitions are to be looked at first.
    NotKnown,
    Only(RangeSet),
}

/// One statement's outcome; the connection comes back with it.
pub(super) struct Attempt {
    retention: Retention,
    elapsed: Duration,
    outcome: Result<RetentionOutcome, MarkError>,
}

/// What is to be done next.
enum Task {
    Tend(RangeSet),
    Step(Step),
}

enum RetentionOutcome {
    Tended(Option<Tended>),
    Bounds(Option<(i64, i64)>),
    Batch(RangeSet, Removed),
}

impl Removal {
    pub(super) fn new(keep: Option<Duration>) -> Self {
        let every = keep.map(between_passes);
        Self {
            pass: Pass::default(),
            every: every.unwrap_or_default(),
            due_at: every.map(|every| Instant::now() + every),
            by_row: ByRow::NotKnown,
            forgotten_at: Instant::now(),
            task: None,
        }
    }

    /// Waits for the running batch, or, with nothing to give, until the next one is due.
    ///
    /// Cancel-safe: yes.
    pub(super) async fn next(&mut self) -> Option<Attempt> {
        if self.task.is_some() {
            return Some(joined(&mut self.task).await);
        }
        match self.due_at {
            Some(due_at) => sleep_until(due_at).await,
            None => std::future::pending().await,
        }
        None
    }

    fn rest(&mut self, passing: Passing, elapsed: Duration) {
        let pause = match passing {
            Passing::On => rest(elapsed),
            Passing::Over => {
                self.by_row = ByRow::NotKnown;
                self.every
            }
        };
        self.due_at = Some(Instant::now() + pause);
    }
}

impl Run<'_> {
    /// Lets the next batch be removed, beside everything else.
    fn remove_old(&mut self) {
        let is_ledger = matches!(self.session.marks, Marks::Ledger(_));
        if !is_ledger && self.removal.forgotten_at.elapsed() >= FORGET_EVERY {
            self.removal.pass.forget();
            self.removal.forgotten_at = Instant::now();
        }
        let task = self.next_removal();
        let (Some(task), None) = (task, self.drain_until) else {
            return self.removal.rest(Passing::Over, Duration::ZERO);
        };
        let Some(mut retention) = self.session.retention.take() else {
            self.removal.due_at = None;
            return;
        };
        let began_at = Instant::now();
        self.removal.task = Some(tokio::spawn(async move {
            let outcome = match task {
                Task::Tend(removable) => retention
                    .maintain_partitions(&removable)
                    .await
                    .map(RetentionOutcome::Tended),
                Task::Step(Step::Bounds(from)) => {
                    retention.bounds(from).await.map(RetentionOutcome::Bounds)
                }
                Task::Step(Step::Remove(batch)) => {
                    let removed = retention.remove(&batch).await;
                    removed.map(|removed| RetentionOutcome::Batch(batch, removed))
                }
            };
            Attempt {
                retention,
                elapsed: began_at.elapsed(),
                outcome,
            }
        }));
    }

    fn next_removal(&mut self) -> Option<Task> {
        let mut spared = self.relay.core.numbers();
        match &self.session.marks {
            Marks::None => None,
            Marks::Rows(_) => {
                let step = self.removal.pass.next(&Scope {
                    settled: &std::iter::once(i64::MIN..=i64::MAX).collect(),
                    spared: &[&spared],
                });
                step.map(Task::Step)
            }
            Marks::Ledger(ledger) => {
                // The newest number that was sent tells that the table is the same one.
                spared.insert_range(ledger.tail()?.seq..=i64::MAX);
                let has_partitions = self.session.retention.as_ref()?.has_partitions();
                let settled = match &self.removal.by_row {
                    ByRow::NotKnown if has_partitions => {
                        spared.extend(ledger.unsent());
                        return Some(Task::Tend(ledger.accounted().difference(&spared)));
                    }
                    ByRow::NotKnown | ByRow::All => Cow::Borrowed(ledger.accounted()),
                    ByRow::Only(numbers) => Cow::Owned(ledger.accounted().intersection(numbers)),
                };
                let step = self.removal.pass.next(&Scope {
                    settled: &settled,
                    spared: &[&spared, ledger.unsent()],
                });
                step.map(Task::Step)
            }
        }
    }

    /// Takes what was removed; ends the session for rows that were never sent and stood among those.
    ///
    /// Without an attempt it begins the next one.
    pub(super) fn take_removed(&mut self, attempt: Option<Attempt>) -> Option<End> {
        let Some(attempt) = attempt else {
            self.remove_old();
            return None;
        };
        self.session.retention = Some(attempt.retention);
        let elapsed = attempt.elapsed;
        let passing = match attempt.outcome {
            Ok(RetentionOutcome::Tended(None)) => {
                self.removal.by_row = ByRow::All;
                Passing::On
            }
            Ok(RetentionOutcome::Tended(Some(tended))) => {
                if let Some(rows) = tended.rows {
                    self.relay.metrics.removed(rows);
                    info!(rows, "dropped a partition of rows that were sent");
                }
                let end = self.take_missed_numbers(tended.missed);
                if end.is_some() {
                    return end;
                }
                // Another one may be due as well.
                if tended.rows.is_none() {
                    self.removal.by_row = ByRow::Only(tended.by_row);
                }
                Passing::On
            }
            Ok(RetentionOutcome::Bounds(bounds)) => self.removal.pass.took_bounds(bounds),
            Ok(RetentionOutcome::Batch(_, removed)) if removed.is_other_table => {
                let why = "the sequence behind `seq` was set back or has another file";
                return Some(End::Moved(why.to_owned()));
            }
            Ok(RetentionOutcome::Batch(_, removed)) if !removed.missed.is_empty() => {
                self.removal.pass.failed();
                let end = self.take_missed_numbers(removed.missed);
                if end.is_some() {
                    return end;
                }
                Passing::Over
            }
            Ok(RetentionOutcome::Batch(batch, removed)) => {
                let rows = removed.gone.len();
                self.relay.metrics.removed(rows);
                debug!(rows, elapsed_ms = elapsed.as_millis() as u64, "removed");
                self.removal.pass.took(&batch, &removed, elapsed)
            }
            Err(MarkError::NotLeader { .. }) => return Some(End::Deposed),
            Err(failure) => {
                warn!(error = %chain(&failure), "could not remove rows that were sent; trying again");
                self.removal.pass.failed();
                Passing::Over
            }
        };
        self.removal.rest(passing, elapsed);
        None
    }

    fn take_missed_numbers(&mut self, numbers: RangeSet) -> Option<End> {
        self.take_missed(&Missed {
            numbers,
            ..Missed::default()
        })
    }
}
