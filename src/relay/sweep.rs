//! The sweep: numbers that never become rows, and rows that the stream missed, which are read from the table.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::{End, Run};
use crate::config::Mode;
use crate::mark::Marks;
use crate::row::RowId;
use crate::row::ranges::RangeSet;
use crate::source::SourceError;
use crate::source::polling::PollError;
use crate::source::replication::sweep::{Judgement, Missed, Progress, Watch};
use crate::text::chain;

/// The watch comes back with what it found.
pub(super) type Judged = (Watch, Result<Judgement, PollError>);

/// How often the holes that the stream leaves are looked at, unless sweeps come more often.
const HOLES_EVERY: Duration = Duration::from_secs(5);
/// After so many sweeps rows that a reread did not bring away are worth another one.
const SWEEPS_BETWEEN_REREADS: u32 = 10;

/// The sweep's side of one session.
pub(super) struct Sweep {
    every: Duration,
    pub(super) judging: Option<JoinHandle<Judged>>,
    swept_at: Option<Instant>,
}

/// Rows for which the table was read, and since when: outlives sessions, so that rows that can't go out make no
/// circle of rereads.
#[derive(Default)]
pub(super) struct Reread {
    missed: Missed,
    at: Option<Instant>,
}

impl Sweep {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            judging: None,
            swept_at: None,
        }
    }

    /// How often the watch is to look.
    pub(super) fn look_every(&self) -> Duration {
        HOLES_EVERY.min(self.every)
    }

    fn is_due(&self) -> bool {
        self.swept_at.is_none_or(|at| at.elapsed() >= self.every)
    }
}

impl Run<'_> {
    /// The numbers of which it is known what becomes of them, and the highest number seen.
    fn numbers_known(&self) -> (RangeSet, i64) {
        let mut known = self.relay.core.numbers();
        known.extend(&self.owed().filter_map(|row| row.seq).collect());
        let Marks::Ledger(ledger) = &self.session.marks else {
            return (known, self.top);
        };
        known.extend(ledger.accounted());
        (known, self.top.max(ledger.highest()))
    }

    /// Ranges of numbers below the highest one of which it is not known what becomes of them.
    pub(super) fn holes_open(&self) -> Option<u64> {
        if !matches!(self.session.marks, Marks::Ledger(_)) {
            return None;
        }
        let (known, top) = self.numbers_known();
        Some(known.gaps(i64::MIN..=top).count() as u64)
    }

    /// The ids of the rows in flight, and of those whose mark is owed.
    fn ids_known(&self) -> HashSet<RowId> {
        let mut ids = self.relay.core.ids();
        ids.extend(self.owed().map(|row| row.id.clone()));
        ids
    }

    /// Lets the watch look, beside everything else.
    pub(super) fn look_for_missed(&mut self) {
        let (Some(passed), None) = (self.relay.core.passed(), &self.sweep.judging) else {
            return;
        };
        // Only a stream with marks has a watch.
        let Some(mut watch) = self.session.watch.take_if(|watch| match watch {
            Watch::Numbers(_) => true,
            Watch::Rows(watch) => watch.has_numbers() || self.relay.core.held().rows() == 0,
        }) else {
            return;
        };
        let is_sweep = self.sweep.is_due();
        if is_sweep {
            self.sweep.swept_at = Some(Instant::now());
        }
        let (settled, top) = self.numbers_known();
        let progress = Progress {
            settled,
            top,
            in_flight: match &watch {
                Watch::Numbers(_) => Default::default(),
                Watch::Rows(_) => self.ids_known(),
            },
            passed,
            is_sweep,
        };
        self.sweep.judging = Some(tokio::spawn(async move {
            let judgement = watch.look(&progress).await;
            (watch, judgement)
        }));
    }

    /// Takes rolled back numbers; ends the session for rows that the stream passed without bringing them.
    pub(super) fn take_judgement(&mut self, (watch, judgement): Judged) -> Option<End> {
        let judgement = match judgement {
            Ok(judgement) => judgement,
            Err(failure) if watch.is_closed() => {
                return Some(End::Source(SourceError::Polling(failure)));
            }
            Err(failure) => {
                debug!(error = chain(&failure), "could not look for missed rows");
                Judgement::default()
            }
        };
        if watch.awaits_stream() {
            self.session.source.ask_position();
        }
        self.session.watch = Some(watch);
        if let Marks::Ledger(ledger) = &mut self.session.marks {
            ledger.note_rolled_back(&judgement.rolled_back);
        }
        self.take_missed(&judgement.missed)
    }

    /// Ends the session for rows that nobody read, unless the table was read for them already.
    pub(super) fn take_missed(&mut self, missed: &Missed) -> Option<End> {
        let reread = &mut self.relay.reread;
        let stalls = self.sweep.every * SWEEPS_BETWEEN_REREADS;
        if reread.at.is_some_and(|at| at.elapsed() >= stalls) {
            *reread = Reread::default();
        }
        let news = missed.difference(&reread.missed);
        if news.is_empty() {
            if !missed.is_empty() {
                let rows = missed.rows();
                warn!(
                    rows,
                    "rows that the stream missed still stand unsent after the table was read"
                );
            }
            return None;
        }
        reread.missed.extend(&news);
        reread.at.get_or_insert_with(Instant::now);
        let rows = news.rows();
        self.relay
            .metrics
            .missed(usize::try_from(rows).unwrap_or(usize::MAX));
        let text = match self.relay.config.source.mode {
            Mode::Replication => format!(
                "{rows} committed rows were missing from the replication stream: they are read from the table"
            ),
            Mode::Polling => {
                format!("{rows} committed rows were missed: the table is read again")
            }
        };
        error!(rows, first_seq = news.numbers.first(), "{text}");
        self.relay.status.failed(text.as_str());
        Some(End::Reread(text))
    }
}
