//! The sweep: numbers that never become rows, and rows that the stream missed, which are read from the table.

use std::collections::HashSet;
use std::time::Duration;

use tracing::{debug, error, warn};

use super::{Effect, End, Machine};
use crate::config::Mode;
use crate::mark::Marks;
use crate::row::RowId;
use crate::row::ranges::RangeSet;
use crate::source::SourceError;
use crate::source::polling::PollError;
use crate::source::replication::sweep::{Judgement, Missed, Progress};
use crate::text::chain;

/// After so many sweeps rows that a reread did not bring away are worth another one.
const SWEEPS_BETWEEN_REREADS: u32 = 10;

/// How the watch tells an unsent row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looks {
    ByNumber,
    /// By its mark; a held row can be told by its number, where it has one.
    ByMark {
        has_numbers: bool,
    },
}

/// What a look came to.
pub(crate) struct Look {
    pub(crate) judgement: Result<Judgement, PollError>,
    /// Its connection has ended.
    pub(crate) is_closed: bool,
    /// The next look needs the stream to have passed a position.
    pub(crate) awaits_stream: bool,
}

/// The sweep's side of one session.
pub(super) struct Sweep {
    every: Duration,
    watch: Watching,
    swept_at: Option<Duration>,
}

enum Watching {
    /// Nobody looks.
    Nobody,
    Idle(Looks),
    Looking(Looks),
}

/// Rows for which the table was read, and since when: outlives sessions, so that rows that can't go out make no
/// circle of rereads.
#[derive(Default)]
pub(super) struct Reread {
    missed: Missed,
    at: Option<Duration>,
}

impl Sweep {
    pub(super) fn new(every: Duration, looks: Option<Looks>) -> Self {
        Self {
            every,
            watch: looks.map_or(Watching::Nobody, Watching::Idle),
            swept_at: None,
        }
    }

    /// Whether a sweep is due by now; then it counts as made.
    fn take_turn(&mut self, now: Duration) -> bool {
        let is_due = self
            .swept_at
            .is_none_or(|at| now.saturating_sub(at) >= self.every);
        if is_due {
            self.swept_at = Some(now);
        }
        is_due
    }
}

impl Machine {
    /// The numbers of which it is known what becomes of them, and the highest number seen.
    fn numbers_known(&self) -> (RangeSet, i64) {
        let mut known = self.memory.core.numbers();
        known.extend(&self.owed().filter_map(|row| row.seq).collect());
        let Marks::Ledger(ledger) = &self.marks else {
            return (known, self.feed.top());
        };
        known.extend(ledger.accounted());
        (known, self.feed.top().max(ledger.highest()))
    }

    /// Ranges of numbers below the highest one of which it is not known what becomes of them.
    pub(crate) fn holes_open(&self) -> Option<u64> {
        if !matches!(self.marks, Marks::Ledger(_)) {
            return None;
        }
        let (known, top) = self.numbers_known();
        Some(known.gaps(i64::MIN..=top).count() as u64)
    }

    /// The ids of the rows in flight, and of those whose mark is owed.
    fn ids_known(&self) -> HashSet<RowId> {
        let mut ids = self.memory.core.ids();
        ids.extend(self.owed().map(|row| row.id.clone()));
        ids
    }

    /// Lets the watch look, beside everything else.
    pub(super) fn look_for_missed(
        &mut self,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let (Some(passed), Watching::Idle(looks)) = (self.memory.core.passed(), &self.sweep.watch)
        else {
            return None;
        };
        let looks = *looks;
        let in_flight = match looks {
            Looks::ByNumber => HashSet::new(),
            Looks::ByMark { has_numbers } => {
                if !has_numbers && self.memory.core.held().rows() > 0 {
                    return None;
                }
                self.ids_known()
            }
        };
        let (settled, top) = self.numbers_known();
        self.sweep.watch = Watching::Looking(looks);
        effects.push(Effect::LookForMissed(Progress {
            settled,
            top,
            in_flight,
            passed,
            is_sweep: self.sweep.take_turn(now),
        }));
        None
    }

    /// Takes rolled back numbers; ends the session for rows that the stream passed without bringing them.
    pub(super) fn take_look(
        &mut self,
        look: Look,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let judgement = match look.judgement {
            Ok(judgement) => judgement,
            Err(failure) if look.is_closed => {
                return Some(End::Source(SourceError::Polling(failure)));
            }
            Err(failure) => {
                debug!(error = chain(&failure), "could not look for missed rows");
                Judgement::default()
            }
        };
        if look.awaits_stream {
            effects.push(Effect::AskPosition);
        }
        if let Watching::Looking(looks) = self.sweep.watch {
            self.sweep.watch = Watching::Idle(looks);
        }
        if let Marks::Ledger(ledger) = &mut self.marks {
            ledger.note_rolled_back(&judgement.rolled_back);
        }
        self.take_missed(&judgement.missed, now, effects)
    }

    /// Ends the session for rows that nobody read, unless the table was read for them already.
    pub(super) fn take_missed(
        &mut self,
        missed: &Missed,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let reread = &mut self.memory.reread;
        let stalls = self.sweep.every * SWEEPS_BETWEEN_REREADS;
        if reread.at.is_some_and(|at| now.saturating_sub(at) >= stalls) {
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
        reread.at.get_or_insert(now);
        let rows = news.rows();
        self.memory
            .metrics
            .missed(usize::try_from(rows).unwrap_or(usize::MAX));
        let text = match self.terms.mode {
            Mode::Replication => format!(
                "{rows} committed rows were missing from the replication stream: they are read from the table"
            ),
            Mode::Polling => {
                format!("{rows} committed rows were missed: the table is read again")
            }
        };
        error!(rows, first_seq = news.numbers.first(), "{text}");
        effects.push(Effect::ShowFailure(text.clone()));
        Some(End::Reread(text))
    }
}
