//! Marking what was delivered, and what the ledger needs beside: one statement of each at a time.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::paid::Paid;
use super::{End, Run};
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

/// How long a row waits whose commit is not visible, before its mark is tried again; it doubles up to a second.
const OWED_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Rows whose mark is tried again in one statement.
const OWED_ROWS_MAX: usize = 1_000;

/// Whether the mark of some rows was tried before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Another,
}

/// The mark that is being written.
pub(super) struct Marking {
    pub(super) rows: Arc<Vec<Delivered>>,
    attempt: Attempt,
    /// When the first of its rows was acknowledged.
    since: Instant,
    pub(super) task: JoinHandle<Result<MarkOutcome, MarkError>>,
}

/// Since when marks fail, and what PostgreSQL says.
pub(super) struct Failing {
    pub(super) since: Instant,
    pub(super) error: String,
}

/// Rows that Kafka acknowledged and whose mark waits for their commit, or for somebody's lock.
pub(super) struct Owing {
    rows: Vec<Delivered>,
    again_at: Option<Instant>,
    pause: Duration,
    paid: Paid,
}

impl Owing {
    /// Begins with what an earlier process owed.
    pub(super) fn new(rows: Vec<Delivered>) -> Self {
        Self {
            again_at: (!rows.is_empty()).then(Instant::now),
            rows,
            pause: OWED_AGAIN_AFTER,
            paid: Paid::default(),
        }
    }

    /// Whether a row that a page hands out was marked since the page was read; says so once.
    pub(super) fn take_paid(&mut self, row: &OutboxRow) -> bool {
        self.paid.take(row)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn rows(&self) -> &[Delivered] {
        &self.rows
    }

    fn is_due(&self, now: Instant) -> bool {
        self.again_at.is_some_and(|at| now >= at)
    }

    /// Takes some rows to be marked; what is left has its turn after them.
    fn take(&mut self) -> Vec<Delivered> {
        let taken = self.rows.len().min(OWED_ROWS_MAX);
        self.rows.drain(..taken).collect()
    }

    /// Adds rows to be tried later; sooner where some of the last ones could be marked.
    fn add(&mut self, rows: Vec<Delivered>, has_progress: bool) {
        self.pause = match has_progress {
            true => OWED_AGAIN_AFTER,
            false => (self.pause * 2).min(MARK_AGAIN_AFTER),
        };
        self.rows.extend(rows);
        self.again_at = (!self.rows.is_empty()).then(|| Instant::now() + self.pause);
    }
}

/// What the audit of one complete segment found.
pub(super) struct Finding {
    segment: i64,
    missed: crate::row::ranges::RangeSet,
}

impl Run<'_> {
    /// The rows whose mark is owed, with those that are being marked again.
    pub(super) fn owed(&self) -> impl Iterator<Item = &Delivered> {
        let marking = self.marking.as_ref();
        let again = marking.filter(|marking| marking.attempt == Attempt::Another);
        let again = again.into_iter().flat_map(|marking| marking.rows.iter());
        self.owing.rows.iter().chain(again)
    }

    /// What tells the owed rows that a source hands out again.
    pub(super) fn owed_keys(&self) -> HashSet<(Option<i64>, RowId)> {
        self.owed().map(|row| (row.seq, row.id.clone())).collect()
    }

    pub(super) fn mark_due_at(&self) -> Option<Instant> {
        let owed_at = self.owing.again_at.filter(|_| self.marking.is_none());
        let deadlines = [self.drain_until, self.hold_writer.again_at(), owed_at];
        let deadline = deadlines.into_iter().flatten().min();
        if self.marking.is_some() || self.relay.core.unmarked() == 0 {
            return deadline;
        }
        let due = self.mark_again_at.unwrap_or(self.last_mark_at + MARK_EVERY);
        Some(deadline.map_or(due, |deadline| due.min(deadline)))
    }

    pub(super) fn start_mark(&mut self) {
        let now = Instant::now();
        if self.marking.is_none() && self.owing.is_due(now) {
            let rows = self.owing.take();
            let statement = self.session.marks.again(&rows, self.owing.rows().len());
            return self.run_mark(rows, statement, Attempt::Another, now);
        }
        if self.marking.is_some() || self.relay.core.unmarked() == 0 {
            return;
        }
        let is_due = match self.mark_again_at {
            Some(at) => now >= at,
            None => {
                self.drain_until.is_some()
                    || self.relay.core.is_pressed()
                    || self.nothing_else_comes()
                    || now >= self.last_mark_at + MARK_EVERY
            }
        };
        if !is_due {
            return;
        }
        let rows = self.relay.core.take_delivered(self.extent(now));
        if rows.is_empty() {
            self.mark_again_at = Some(now + LOOK_AGAIN_AFTER);
            return;
        }
        (self.last_mark_at, self.mark_again_at) = (now, None);
        let since = self.unmarked_since.take().unwrap_or(now);
        self.note_unmarked();
        let resolved = self.relay.core.confirmable();
        let statement = self.session.marks.statement(&rows, resolved);
        self.run_mark(rows, statement, Attempt::First, since);
    }

    /// Remembers since when rows wait for their mark.
    pub(super) fn note_unmarked(&mut self) {
        if self.relay.core.unmarked() > 0 {
            self.unmarked_since.get_or_insert_with(Instant::now);
        }
    }

    fn run_mark(
        &mut self,
        rows: Vec<Delivered>,
        statement: Option<Arc<Statement>>,
        attempt: Attempt,
        since: Instant,
    ) {
        let Some(statement) = statement else {
            return;
        };
        let sql = self.session.sql.clone();
        self.marking = Some(Marking {
            rows: Arc::new(rows),
            attempt,
            since,
            task: tokio::spawn(async move { statement.run(&sql.client).await }),
        });
    }

    /// Which rows are worth a mark: a number that stands alone takes 21 bytes in the ledger, one in a range next to nothing.
    fn extent(&self, now: Instant) -> MarkSelection {
        let is_by_row = !matches!(self.session.marks, Marks::Ledger(_));
        let is_late = now >= self.last_mark_at + MARK_ALL_EVERY;
        match is_by_row || is_late || self.drain_until.is_some() {
            true => MarkSelection::All,
            false => MarkSelection::InOrder,
        }
    }

    /// The source reads on only when these rows are marked, and no report is due that could be waited for.
    fn nothing_else_comes(&self) -> bool {
        self.session.source.is_waiting() && self.feed.is_empty() && self.relay.core.sent() == 0
    }

    pub(super) fn take_mark(&mut self, (marking, result): Marked) -> Option<End> {
        let rows = &marking.rows;
        let failure = match result {
            Ok(outcome) => return self.take_outcome(&marking, outcome),
            Err(failure) => failure,
        };
        match marking.attempt {
            Attempt::Another => self.owing.add(rows.to_vec(), false),
            Attempt::First => {
                self.relay.core.mark_failed(rows);
                self.unmarked_since = Some(marking.since);
            }
        }
        match failure {
            MarkError::NotLeader { .. } => return Some(End::Deposed),
            MarkError::Denied { .. } => return Some(End::Halt(chain(&failure))),
            failure if self.session.sql.client.is_closed() || failure.is_read_only() => {
                return Some(End::Mark(failure));
            }
            _ => {}
        }
        let error = chain(&failure);
        warn!(error, rows = rows.len(), "could not mark; trying again");
        let since = self
            .failing
            .as_ref()
            .map_or_else(Instant::now, |failing| failing.since);
        self.failing = Some(Failing { since, error });
        self.mark_again_at = Some(Instant::now() + MARK_AGAIN_AFTER);
        None
    }

    /// Takes rows out that were marked, and keeps those that were not.
    fn take_outcome(&mut self, marking: &Marking, outcome: MarkOutcome) -> Option<End> {
        self.failing = None;
        let rows = marking.rows.as_slice();
        let marked = match outcome.is_complete() {
            true => Cow::Borrowed(rows),
            false => Cow::Owned(outcome.marked_of(rows)),
        };
        self.session.marks.committed(&marked);
        self.relay.core.marked(&marked);
        self.relay.replayed.marked(&marked);
        self.relay
            .metrics
            .marked(marked.len(), marking.since.elapsed());
        let MarkOutcome { waiting, refused } = outcome;
        debug!(rows = marked.len(), waiting = waiting.len(), "marked");
        self.relay.core.mark_waits(&waiting);
        if marking.attempt == Attempt::Another {
            self.owing.paid.add(&marked);
        }
        if marking.attempt == Attempt::Another || !waiting.is_empty() {
            self.owing.add(waiting, !marked.is_empty());
            self.tell_owed();
        }
        self.refuse(&refused)
    }

    /// Tells a source of unsent rows how many of them are owed a mark.
    fn tell_owed(&self) {
        let source = &self.session.source;
        if source.repeats_held_rows() {
            source.owe(self.owing.rows().len());
        }
    }

    /// Blocks the aggregates of rows that were published and can't be marked.
    fn refuse(&mut self, refused: &[RefusedMark]) -> Option<End> {
        for RefusedMark {
            row,
            error,
            aggregate_type,
            aggregate_id,
        } in refused
        {
            let bytes = |text: &Option<String>| text.clone().map(Bytes::from);
            let (kind, id) = (bytes(aggregate_type), bytes(aggregate_id));
            let aggregate = Aggregate::of(kind.as_deref(), id.as_deref());
            let name = aggregate_type.as_deref().unwrap_or_default();
            let ticket = match self.relay.core.refuse_mark(row, aggregate, name, error) {
                Ok(ticket) => ticket,
                Err(reason) => return Some(End::Halt(reason)),
            };
            self.relay.metrics.blocked(UNMARKABLE);
            error!(event_id = %row.id, error, "row was published and can't be marked as sent: its aggregate is blocked");
            let layout = &self.session.layout;
            let stub = OutboxRow::of_aggregate(layout, row.id.clone(), row.seq, (kind, id));
            if let Some(end) = self.note_aside(ticket, stub) {
                return Some(end);
            }
        }
        None
    }

    /// Compacts the ledger, audits what is complete and forgets old history, beside the marks.
    pub(super) fn maintain(&mut self) {
        if self.maintenance.is_some() || self.drain_until.is_some() {
            return;
        }
        let layout = &self.session.layout;
        let (table, seq) = (layout.sql_name(), layout.names.sql("seq"));
        let audits = match &self.session.marks {
            Marks::Ledger(ledger) => ledger.audits(&table, &seq),
            Marks::Rows(_) | Marks::None => Vec::new(),
        };
        let (sql, token) = (self.session.sql.clone(), self.session.token.clone());
        self.maintenance = Some(tokio::spawn(async move {
            crate::mark::ledger::compact(&sql.client, &token).await?;
            crate::state::hold::forget_history(&sql.client, &token).await?;
            let mut findings = Vec::new();
            for audit in audits {
                findings.push(Finding {
                    segment: audit.segment,
                    missed: audit.run(&sql.client).await?,
                });
            }
            Ok(findings)
        }));
    }

    pub(super) fn take_maintenance(
        &mut self,
        result: Result<Vec<Finding>, MarkError>,
    ) -> Option<End> {
        let findings = match result {
            Ok(findings) => findings,
            Err(MarkError::NotLeader { .. }) => return Some(End::Deposed),
            Err(failure) if self.session.sql.client.is_closed() => return Some(End::Mark(failure)),
            Err(failure) => {
                warn!(error = %chain(&failure), "could not maintain the state tables");
                return None;
            }
        };
        for finding in findings {
            if finding.missed.is_empty() {
                if let Marks::Ledger(ledger) = &mut self.session.marks {
                    ledger.closed(finding.segment);
                }
                continue;
            }
            self.relay
                .metrics
                .missed(usize::try_from(finding.missed.len()).unwrap_or(usize::MAX));
            error!(
                segment = finding.segment,
                rows = finding.missed.len(),
                "rows of a complete segment were never sent"
            );
            return Some(End::Reread(
                "rows of a complete segment were never sent".to_owned(),
            ));
        }
        None
    }
}

/// A mark that has ended, with what became of its rows.
pub(super) type Marked = (Marking, Result<MarkOutcome, MarkError>);

/// Waits for the running mark; for ever while none runs.
///
/// Cancel-safe: yes.
pub(super) async fn finished(marking: &mut Option<Marking>) -> Marked {
    let Some(running) = marking else {
        return std::future::pending().await;
    };
    let result = (&mut running.task)
        .await
        .expect("a mark neither panics nor is aborted while it is awaited");
    let ended = marking.take().expect("it was there a moment ago");
    (ended, result)
}

/// Waits for the running maintenance; for ever while none runs.
///
/// Cancel-safe: yes.
pub(super) async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let result = running
        .await
        .expect("maintenance neither panics nor is aborted while it is awaited");
    *task = None;
    result
}
