//! Marking what was delivered, and what the ledger needs beside: one statement of each at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::{End, Run};
use crate::core::{Delivered, Extent};
use crate::mark::{MarkError, Marks};
use crate::telemetry::chain;

/// How long delivered rows wait for company before they are marked, unless the window is pressed or the source waits.
const MARK_EVERY: Duration = Duration::from_millis(50);
/// How long the ledger waits for partitions that have not answered yet (design §6: checkpoints are 200 ms apart at most).
const MARK_ALL_EVERY: Duration = Duration::from_millis(200);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);
/// How long a failed mark waits before it is tried again.
pub(super) const MARK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The mark that is being written.
pub(super) struct Marking {
    pub(super) rows: Arc<Vec<Delivered>>,
    pub(super) task: JoinHandle<Result<(), MarkError>>,
}

/// What the audit of one complete segment found.
pub(super) struct Finding {
    segment: i64,
    missed: crate::ranges::RangeSet,
}

impl Run<'_> {
    pub(super) fn mark_due_at(&self) -> Option<Instant> {
        let deadline = match (self.drain_until, self.keeping.again_at()) {
            (Some(deadline), Some(again_at)) => Some(deadline.min(again_at)),
            (deadline, again_at) => deadline.or(again_at),
        };
        if self.marking.is_some() || self.relay.core.unmarked() == 0 {
            return deadline;
        }
        let due = self.mark_again_at.unwrap_or(self.last_mark_at + MARK_EVERY);
        Some(deadline.map_or(due, |deadline| due.min(deadline)))
    }

    pub(super) fn start_mark(&mut self) {
        if self.marking.is_some() || self.relay.core.unmarked() == 0 {
            return;
        }
        let now = Instant::now();
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
        let rows = Arc::new(rows);
        (self.last_mark_at, self.mark_again_at) = (now, None);
        let Some(statement) = self.session.marks.statement(&rows) else {
            return;
        };
        let sql = self.session.sql.clone();
        let task = tokio::spawn(async move { statement.run(&sql.client).await });
        self.marking = Some(Marking { rows, task });
    }

    /// Which rows are worth a mark: a number that stands alone takes 21 bytes in the ledger, one in a range next to nothing.
    fn extent(&self, now: Instant) -> Extent {
        let is_by_row = !matches!(self.session.marks, Marks::Ledger(_));
        let is_late = now >= self.last_mark_at + MARK_ALL_EVERY;
        match is_by_row || is_late || self.drain_until.is_some() {
            true => Extent::All,
            false => Extent::InOrder,
        }
    }

    /// The source reads on only when these rows are marked, and no report is due that could be waited for.
    fn nothing_else_comes(&self) -> bool {
        self.session.source.is_waiting() && self.feed.is_empty() && self.relay.core.sent() == 0
    }

    pub(super) fn take_mark(
        &mut self,
        (rows, result): (Arc<Vec<Delivered>>, Result<(), MarkError>),
    ) -> Option<End> {
        match result {
            Ok(()) => {
                self.session.marks.committed(&rows);
                self.relay.core.marked(&rows);
                self.relay
                    .metrics
                    .marked(rows.len(), self.last_mark_at.elapsed());
                debug!(rows = rows.len(), "marked");
                None
            }
            Err(MarkError::NotLeader { .. }) => {
                self.relay.core.mark_failed(&rows);
                Some(End::Deposed)
            }
            Err(failure) => {
                self.relay.core.mark_failed(&rows);
                if self.session.sql.client.is_closed() {
                    return Some(End::Mark(failure));
                }
                warn!(error = %chain(&failure), rows = rows.len(), "could not mark; trying again");
                self.mark_again_at = Some(Instant::now() + MARK_AGAIN_AFTER);
                None
            }
        }
    }

    /// Compacts the ledger, audits what is complete and forgets old history, beside the marks.
    pub(super) fn maintain(&mut self) {
        if self.maintenance.is_some() || self.drain_until.is_some() {
            return;
        }
        let table = self.session.layout.sql_name();
        let audits = match &self.session.marks {
            Marks::Ledger(ledger) => ledger.audits(&table),
            Marks::Rows(_) | Marks::None => Vec::new(),
        };
        let (sql, tenure) = (self.session.sql.clone(), self.session.tenure.clone());
        self.maintenance = Some(tokio::spawn(async move {
            crate::mark::ledger::compact(&sql.client, &tenure).await?;
            crate::hold::forget_history(&sql.client, &tenure).await?;
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

/// Waits for the running mark; for ever while none runs.
///
/// Cancel-safe: yes.
pub(super) async fn finished(
    marking: &mut Option<Marking>,
) -> (Arc<Vec<Delivered>>, Result<(), MarkError>) {
    let Some(running) = marking else {
        return std::future::pending().await;
    };
    let result = (&mut running.task)
        .await
        .expect("a mark neither panics nor is aborted while it is awaited");
    let rows = running.rows.clone();
    *marking = None;
    (rows, result)
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
