//! The holes that a stream leaves: handed to the watch with the moment's progress, and its judgement taken.

use tracing::{debug, error};

use super::Run;
use crate::mark::Marks;
use crate::ranges::RangeSet;
use crate::source::polling::PollError;
use crate::source::replication::hole_watch::{HoleWatch, Judgement, Progress};
use crate::telemetry::chain;

/// The watch comes back with what it found.
pub(super) type Judged = (HoleWatch, Result<Judgement, PollError>);

impl Run<'_> {
    /// The numbers of which it is known what becomes of them, and the highest number seen.
    fn numbers_known(&self) -> Option<(RangeSet, i64)> {
        let Marks::Ledger(ledger) = &self.session.marks else {
            return None;
        };
        let mut known = ledger.accounted().clone();
        known.extend(&self.relay.core.numbers());
        Some((known, self.top.max(ledger.highest())))
    }

    /// Ranges of numbers below the highest one of which it is not known what becomes of them.
    pub(super) fn holes_open(&self) -> Option<u64> {
        let (known, top) = self.numbers_known()?;
        Some(known.gaps(1..=top).count() as u64)
    }

    /// Lets the watch look at the holes, beside everything else.
    pub(super) fn judge_holes(&mut self) {
        let (Some(passed), None) = (self.relay.core.passed(), &self.judging) else {
            return;
        };
        // Only a stream with the ledger has a watch.
        let Some(mut watch) = self.session.hole_watch.take() else {
            return;
        };
        let Some((settled, top)) = self.numbers_known() else {
            return;
        };
        let progress = Progress {
            settled,
            top,
            passed,
        };
        self.judging = Some(tokio::spawn(async move {
            let judgement = watch.judge(&progress).await;
            (watch, judgement)
        }));
    }

    /// Takes dead numbers, and raises the alarm for rows that the stream passed without bringing them.
    pub(super) fn take_judgement(&mut self, (watch, judgement): Judged) {
        self.session.hole_watch = Some(watch);
        let judgement = match judgement {
            Ok(judgement) => judgement,
            Err(failure) => return debug!(error = chain(&failure), "could not look at the holes"),
        };
        if let Marks::Ledger(ledger) = &mut self.session.marks {
            ledger.note_dead(&judgement.dead);
        }
        let news = judgement.missed.difference(&self.missed);
        self.missed = judgement.missed;
        if news.is_empty() {
            return;
        }
        let rows = news.len();
        self.relay
            .metrics
            .missed(usize::try_from(rows).unwrap_or(usize::MAX));
        let text = format!(
            "the stream passed {rows} committed rows without bringing them: they stand in the table unsent"
        );
        error!(rows, first_seq = news.first(), "{text}");
        self.relay.status.failed(text);
    }
}
