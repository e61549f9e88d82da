//! What is done beside the rows now and then: state tables are kept short, complete segments compared with the table, and
//! people's requests asked for.

use tracing::{error, warn};

use super::{Connection, Effect, End, Machine, Phase};
use crate::mark::{MarkError, Marks};
use crate::row::ranges::RangeSet;
use crate::text::chain;

/// The core judges an outage by half minutes.
const HALF_MINUTE_TICKS: u32 = 30;

/// Whether the state tables are being maintained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maintenance {
    Idle,
    Running,
}

/// Whether the last question about requests is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requests {
    Asked,
    Answered,
}

/// What the audit of one complete segment found.
pub(crate) struct Finding {
    pub(crate) segment: i64,
    /// Rows of it that stand in the table, and of which the ledger says nothing.
    pub(crate) missed: RangeSet,
}

impl Machine {
    /// Compacts the ledger, audits what is complete and forgets old history, beside the marks.
    pub(super) fn maintain(&mut self, effects: &mut Vec<Effect>) -> Option<End> {
        if self.maintenance == Maintenance::Running || self.drain_until.is_some() {
            return None;
        }
        let layout = &self.terms.layout;
        let (table, seq) = (layout.sql_name(), layout.names.sql("seq"));
        let audits = match &self.marks {
            Marks::Ledger(ledger) => ledger.audits(&table, &seq),
            Marks::Rows(_) | Marks::None => Vec::new(),
        };
        self.maintenance = Maintenance::Running;
        effects.push(Effect::Maintain(audits));
        None
    }

    pub(super) fn take_maintenance(
        &mut self,
        result: Result<Vec<Finding>, MarkError>,
        connection: Connection,
    ) -> Option<End> {
        self.maintenance = Maintenance::Idle;
        let findings = match result {
            Ok(findings) => findings,
            Err(MarkError::NotLeader { .. }) => return Some(End::Deposed),
            Err(failure) if connection == Connection::Closed => return Some(End::Mark(failure)),
            Err(failure) => {
                warn!(error = %chain(&failure), "could not maintain the state tables");
                return None;
            }
        };
        for finding in findings {
            if finding.missed.is_empty() {
                if let Marks::Ledger(ledger) = &mut self.marks {
                    ledger.closed(finding.segment);
                }
                continue;
            }
            self.memory
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

    /// Asks, beside everything else, whether somebody wants something released or replayed.
    pub(super) fn ask_for_requests(&mut self, effects: &mut Vec<Effect>) {
        let is_busy = self.requests == Requests::Asked || self.drain_until.is_some();
        if is_busy || matches!(self.terms.phase, Phase::Replay(_)) {
            return;
        }
        self.requests = Requests::Asked;
        effects.push(Effect::AskForRequests);
    }

    pub(super) fn take_request(&mut self, is_asked_for: bool) -> Option<End> {
        self.requests = Requests::Answered;
        let reason = "a release or a replay was requested";
        is_asked_for.then(|| self.released(reason))
    }

    /// Ends the session for rows that were held: the table is read for them, unless it tells no order.
    pub(super) fn released(&self, reason: &str) -> End {
        match self.terms.order_is_told {
            true => End::Reread(reason.to_owned()),
            false => End::Released(reason.to_owned()),
        }
    }

    pub(super) fn count_second(&mut self) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(HALF_MINUTE_TICKS) {
            self.memory.core.half_minute_passed();
        }
    }
}
