//! Retention beside a session: old rows that were sent are removed, a batch at a time, while everything else goes on.

use std::borrow::Cow;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::{Effect, End, Machine};
use crate::mark::{MarkError, Marks};
use crate::row::ranges::RangeSet;
use crate::source::replication::sweep::Missed;
use crate::state::retention::pass::{self, Pass, Passing, Scope, rest};
use crate::state::retention::{Removed, Tended};
use crate::text::chain;

/// Where marks stand in the rows, a number without a row may get one: all are looked at again so often.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);

/// How rows are removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RemovalTerms {
    /// What lies between two passes over the table.
    pub(crate) every: Duration,
    /// Partitions may go as a whole.
    pub(crate) has_partitions: bool,
}

/// One step.
pub(crate) enum Step {
    /// Make partitions ahead, and drop one whose numbers are all among these.
    MaintainPartitions(RangeSet),
    Rows(pass::Step),
}

/// What a step came to.
pub(crate) struct Removal {
    pub(crate) elapsed: Duration,
    pub(crate) outcome: Result<RemovalOutcome, MarkError>,
}

pub(crate) enum RemovalOutcome {
    PartitionsMaintained(Option<Tended>),
    Bounds(Option<(i64, i64)>),
    Batch(RangeSet, Removed),
}

/// Retention's side of one session.
pub(super) struct Removals {
    pass: Pass,
    terms: RemovalTerms,
    state: State,
    /// The numbers whose rows go one by one, once the partitions were looked at; all where there are none.
    by_row: ByRow,
    forgotten_at: Duration,
}

enum State {
    /// Rows are kept for ever.
    Off,
    Due(Duration),
    Running,
}

/// Which numbers of a partitioned table go by rows and not with their partition.
enum ByRow {
    All,
    /// The partitions are to be looked at first.
    NotKnown,
    Only(RangeSet),
}

impl Removals {
    pub(super) fn new(terms: Option<RemovalTerms>, now: Duration) -> Self {
        Self {
            pass: Pass::default(),
            state: terms.map_or(State::Off, |terms| State::Due(now + terms.every)),
            terms: terms.unwrap_or_default(),
            by_row: ByRow::NotKnown,
            forgotten_at: now,
        }
    }

    /// When the next step is due, if none runs.
    pub(super) fn due_at(&self) -> Option<Duration> {
        match self.state {
            State::Due(at) => Some(at),
            State::Off | State::Running => None,
        }
    }

    fn rest(&mut self, passing: Passing, elapsed: Duration, now: Duration) {
        let pause = match passing {
            Passing::On => rest(elapsed),
            Passing::Over => {
                self.by_row = ByRow::NotKnown;
                self.terms.every
            }
        };
        self.state = State::Due(now + pause);
    }
}

impl Machine {
    /// Lets the next batch be removed when it is due, beside everything else.
    pub(super) fn remove_old(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.removals.due_at().is_none_or(|at| now < at) {
            return;
        }
        let is_ledger = matches!(self.marks, Marks::Ledger(_));
        let is_old = now.saturating_sub(self.removals.forgotten_at) >= FORGET_EVERY;
        if !is_ledger && is_old {
            self.removals.pass.forget();
            self.removals.forgotten_at = now;
        }
        let step = self.next_removal();
        match (step, self.drain_until) {
            (Some(step), None) => {
                self.removals.state = State::Running;
                effects.push(Effect::Remove(step));
            }
            _ => self.removals.rest(Passing::Over, Duration::ZERO, now),
        }
    }

    fn next_removal(&mut self) -> Option<Step> {
        let mut spared = self.memory.core.numbers();
        let removals = &mut self.removals;
        match &self.marks {
            Marks::None => None,
            Marks::Rows(_) => {
                let step = removals.pass.next(&Scope {
                    settled: &std::iter::once(i64::MIN..=i64::MAX).collect(),
                    spared: &[&spared],
                });
                step.map(Step::Rows)
            }
            Marks::Ledger(ledger) => {
                // The newest number that was sent tells that the table is the same one.
                spared.insert_range(ledger.tail()?.seq..=i64::MAX);
                let settled = match &removals.by_row {
                    ByRow::NotKnown if removals.terms.has_partitions => {
                        spared.extend(ledger.unsent());
                        let removable = ledger.accounted().difference(&spared);
                        return Some(Step::MaintainPartitions(removable));
                    }
                    ByRow::NotKnown | ByRow::All => Cow::Borrowed(ledger.accounted()),
                    ByRow::Only(numbers) => Cow::Owned(ledger.accounted().intersection(numbers)),
                };
                let step = removals.pass.next(&Scope {
                    settled: &settled,
                    spared: &[&spared, ledger.unsent()],
                });
                step.map(Step::Rows)
            }
        }
    }

    /// Takes what was removed; ends the session for rows that were never sent and stood among those.
    pub(super) fn take_removed(
        &mut self,
        removal: Removal,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        if !matches!(self.removals.state, State::Running) {
            return None;
        }
        let elapsed = removal.elapsed;
        let passing = match removal.outcome {
            Ok(RemovalOutcome::PartitionsMaintained(tended)) => {
                let end = self.take_tended(tended, now, effects);
                if end.is_some() {
                    return end;
                }
                Passing::On
            }
            Ok(RemovalOutcome::Bounds(bounds)) => self.removals.pass.took_bounds(bounds),
            Ok(RemovalOutcome::Batch(_, removed)) if removed.is_other_table => {
                let why = "the sequence behind `seq` was set back or has another file";
                return Some(End::Moved(why.to_owned()));
            }
            Ok(RemovalOutcome::Batch(_, removed)) if !removed.missed.is_empty() => {
                self.removals.pass.failed();
                let end = self.take_missed_numbers(removed.missed, now, effects);
                if end.is_some() {
                    return end;
                }
                Passing::Over
            }
            Ok(RemovalOutcome::Batch(batch, removed)) => {
                let rows = removed.gone.len();
                self.memory.metrics.removed(rows);
                debug!(rows, elapsed_ms = elapsed.as_millis() as u64, "removed");
                self.removals.pass.took(&batch, &removed, elapsed)
            }
            Err(MarkError::NotLeader { .. }) => return Some(End::Deposed),
            Err(failure) => {
                warn!(error = %chain(&failure), "could not remove rows that were sent; trying again");
                self.removals.pass.failed();
                Passing::Over
            }
        };
        self.removals.rest(passing, elapsed, now);
        None
    }

    fn take_tended(
        &mut self,
        tended: Option<Tended>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let Some(tended) = tended else {
            self.removals.by_row = ByRow::All;
            return None;
        };
        if let Some(rows) = tended.rows {
            self.memory.metrics.removed(rows);
            info!(rows, "dropped a partition of rows that were sent");
        }
        let end = self.take_missed_numbers(tended.missed, now, effects);
        // Another one may be due as well.
        if tended.rows.is_none() {
            self.removals.by_row = ByRow::Only(tended.by_row);
        }
        end
    }

    fn take_missed_numbers(
        &mut self,
        numbers: RangeSet,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let missed = Missed {
            numbers,
            ..Missed::default()
        };
        self.take_missed(&missed, now, effects)
    }
}
