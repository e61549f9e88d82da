//! Marking what was delivered: one statement at a time.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, error, warn};

use super::{Connection, Effect, End, Machine};
use crate::core::{Aggregate, Delivered, MarkSelection, UNMARKABLE};
use crate::mark::{MarkError, MarkOutcome, Marks, RefusedMark, Statement};
use crate::row::{OutboxRow, RowId};
use crate::text::chain;

/// How long delivered rows wait for company before they are marked, unless the window is pressed or the source waits.
const MARK_EVERY: Duration = Duration::from_millis(50);
/// How long the ledger waits for partitions that have not answered yet (docs/design.md, "The ledger").
const MARK_ALL_EVERY: Duration = Duration::from_millis(200);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);
/// How long a failed mark waits before it is tried again.
pub(super) const MARK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Whether the mark of some rows was tried before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Another,
}

/// When rows are marked, and the mark that is being written.
pub(super) struct Marking {
    state: State,
    last_at: Duration,
    again_at: Option<Duration>,
    /// Since when rows wait for their mark.
    unmarked_since: Option<Duration>,
    failing: Option<Failing>,
}

enum State {
    Idle,
    Running(Running),
}

/// The rows whose mark is being written.
struct Running {
    rows: Vec<Delivered>,
    attempt: Attempt,
    /// When the first of them was acknowledged.
    since: Duration,
}

/// Since when marks fail, and what PostgreSQL says.
pub(crate) struct Failing {
    pub(crate) since: Duration,
    pub(crate) error: String,
}

impl Marking {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            state: State::Idle,
            last_at: now,
            again_at: None,
            unmarked_since: None,
            failing: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub(super) fn failing(&self) -> Option<&Failing> {
        self.failing.as_ref()
    }

    /// When rows that wait are to be marked, if nothing is being marked.
    pub(super) fn due_at(&self) -> Option<Duration> {
        let due_at = self.again_at.unwrap_or(self.last_at + MARK_EVERY);
        self.is_idle().then_some(due_at)
    }

    /// The rows that are being marked again.
    fn again(&self) -> &[Delivered] {
        match &self.state {
            State::Running(running) if running.attempt == Attempt::Another => &running.rows,
            State::Running(_) | State::Idle => &[],
        }
    }

    /// Gives the rows back whose mark is being written.
    pub(super) fn abandon(&mut self) -> Option<Vec<Delivered>> {
        self.take_running().map(|running| running.rows)
    }

    fn take_running(&mut self) -> Option<Running> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Running(running) => Some(running),
            State::Idle => None,
        }
    }

    fn run(
        &mut self,
        running: Running,
        statement: Option<Arc<Statement>>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(statement) = statement {
            self.state = State::Running(running);
            effects.push(Effect::Mark(statement));
        }
    }

    fn fails(&mut self, error: String, now: Duration) {
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        self.failing = Some(Failing { since, error });
        self.again_at = Some(now + MARK_AGAIN_AFTER);
    }
}

impl Machine {
    /// The rows whose mark is owed, with those that are being marked again.
    pub(super) fn owed(&self) -> impl Iterator<Item = &Delivered> {
        self.owing.rows().iter().chain(self.marking.again())
    }

    /// What tells the owed rows that a source hands out again.
    pub(super) fn owed_keys(&self) -> HashSet<(Option<i64>, RowId)> {
        self.owed().map(|row| (row.seq, row.id.clone())).collect()
    }

    pub(super) fn start_mark(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if !self.marking.is_idle() {
            return;
        }
        if self.owing.is_due(now) {
            let rows = self.owing.take();
            let statement = self.marks.again(&rows, self.owing.rows().len());
            let running = Running {
                rows,
                attempt: Attempt::Another,
                since: now,
            };
            return self.marking.run(running, statement, effects);
        }
        if self.memory.core.unmarked() == 0 || !self.is_mark_due(now) {
            return;
        }
        let rows = self.memory.core.take_delivered(self.extent(now));
        if rows.is_empty() {
            self.marking.again_at = Some(now + LOOK_AGAIN_AFTER);
            return;
        }
        (self.marking.last_at, self.marking.again_at) = (now, None);
        let since = self.marking.unmarked_since.take().unwrap_or(now);
        self.note_unmarked(now);
        let resolved = self.memory.core.confirmable();
        let statement = self.marks.statement(&rows, resolved);
        let running = Running {
            rows,
            attempt: Attempt::First,
            since,
        };
        self.marking.run(running, statement, effects);
    }

    fn is_mark_due(&self, now: Duration) -> bool {
        match self.marking.again_at {
            Some(at) => now >= at,
            None => {
                self.drain_until.is_some()
                    || self.memory.core.is_pressed()
                    || self.nothing_else_comes()
                    || now >= self.marking.last_at + MARK_EVERY
            }
        }
    }

    /// Remembers since when rows wait for their mark.
    pub(super) fn note_unmarked(&mut self, now: Duration) {
        if self.memory.core.unmarked() > 0 {
            self.marking.unmarked_since.get_or_insert(now);
        }
    }

    /// Which rows are worth a mark: a number that stands alone takes 21 bytes in the ledger, one in a range next to nothing.
    fn extent(&self, now: Duration) -> MarkSelection {
        let is_by_row = !matches!(self.marks, Marks::Ledger(_));
        let is_late = now >= self.marking.last_at + MARK_ALL_EVERY;
        match is_by_row || is_late || self.drain_until.is_some() {
            true => MarkSelection::All,
            false => MarkSelection::InOrder,
        }
    }

    /// The source reads on only when these rows are marked, and no report is due that could be waited for.
    fn nothing_else_comes(&self) -> bool {
        let is_waiting = self.terms.source.repeats_held_rows() && !self.feed.is_resolved();
        is_waiting && self.feed.is_empty() && self.memory.core.sent() == 0
    }

    pub(super) fn take_mark(
        &mut self,
        result: Result<MarkOutcome, MarkError>,
        connection: Connection,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let running = self.marking.take_running()?;
        let failure = match result {
            Ok(outcome) => return self.take_outcome(&running, outcome, now, effects),
            Err(failure) => failure,
        };
        let count = running.rows.len();
        match running.attempt {
            Attempt::Another => self.owing.add(running.rows, false, now),
            Attempt::First => {
                self.memory.core.mark_failed(&running.rows);
                self.marking.unmarked_since = Some(running.since);
            }
        }
        match failure {
            MarkError::NotLeader { .. } => return Some(End::Deposed),
            MarkError::Denied { .. } => return Some(End::Halt(chain(&failure))),
            failure if connection == Connection::Closed || failure.is_read_only() => {
                return Some(End::Mark(failure));
            }
            _ => {}
        }
        let error = chain(&failure);
        warn!(error, rows = count, "could not mark; trying again");
        self.marking.fails(error, now);
        None
    }

    /// Takes rows out that were marked, and keeps those that were not.
    fn take_outcome(
        &mut self,
        running: &Running,
        outcome: MarkOutcome,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        self.marking.failing = None;
        let rows = running.rows.as_slice();
        let marked = match outcome.is_complete() {
            true => Cow::Borrowed(rows),
            false => Cow::Owned(outcome.marked_of(rows)),
        };
        self.marks.committed(&marked);
        self.memory.core.marked(&marked);
        self.memory.replayed.marked(&marked);
        self.memory
            .metrics
            .marked(marked.len(), now.saturating_sub(running.since));
        let MarkOutcome { waiting, refused } = outcome;
        debug!(rows = marked.len(), waiting = waiting.len(), "marked");
        self.memory.core.mark_waits(&waiting);
        if running.attempt == Attempt::Another {
            self.owing.pay(&marked);
        }
        if running.attempt == Attempt::Another || !waiting.is_empty() {
            self.owing.add(waiting, !marked.is_empty(), now);
            if self.terms.source.repeats_held_rows() {
                effects.push(Effect::Owe(self.owing.rows().len()));
            }
        }
        self.refuse(refused, effects)
    }

    /// Blocks the aggregates of rows that were published and can't be marked.
    fn refuse(&mut self, refused: Vec<RefusedMark>, effects: &mut Vec<Effect>) -> Option<End> {
        for RefusedMark {
            row,
            error,
            aggregate_type,
            aggregate_id,
        } in refused
        {
            let name = aggregate_type.clone().unwrap_or_default();
            let (kind, id) = (
                aggregate_type.map(Bytes::from),
                aggregate_id.map(Bytes::from),
            );
            let aggregate = Aggregate::of(kind.as_deref(), id.as_deref());
            let ticket = match self.memory.core.refuse_mark(&row, aggregate, &name, &error) {
                Ok(ticket) => ticket,
                Err(reason) => return Some(End::Halt(reason)),
            };
            self.memory.metrics.blocked(UNMARKABLE);
            error!(event_id = %row.id, error, "row was published and can't be marked as sent: its aggregate is blocked");
            let layout = &self.terms.layout;
            let stub = OutboxRow::of_aggregate(layout, row.id, row.seq, (kind, id));
            if let Some(end) = self.put_aside(ticket, stub, effects) {
                return Some(end);
            }
        }
        None
    }
}
