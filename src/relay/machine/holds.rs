//! Recording rows that were put aside: one statement at a time, beside the marks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use super::marking::MARK_AGAIN_AFTER;
use super::{Connection, Effect, End, Machine, Phase};
use crate::config::Mark;
use crate::core::{Delivered, Followers, Held, HeldRow, HoldReason, Ticket};
use crate::mark::{MarkError, Marks, Statement};
use crate::row::ranges::RangeSet;
use crate::row::{Layout, OutboxRow, RowId};
use crate::state::hold::{CopyPolicy, HoldCheckpoint, HoldEntry, KeptRow, What};
use crate::text::chain;

/// What the copies of held rows may take in the database: sixteen of the portions in which they are replayed, and a
/// quarter of `max_wal_size` as PostgreSQL ships it. What is held beyond waits in front of the slot.
const KEPT_BYTES_MAX: u64 = 256 << 20;

/// Rows that were put aside in this session and are not recorded yet.
pub(super) struct HoldWriter {
    rows: HashMap<Ticket, OutboxRow>,
    state: State,
    again_at: Option<Duration>,
    /// What the copies of held rows take.
    kept_bytes: u64,
}

enum State {
    Idle,
    /// These are being recorded.
    Running(Vec<HeldRow>),
}

impl HoldWriter {
    /// Begins with what the copies take that are recorded.
    pub(super) fn new(kept_bytes: u64) -> Self {
        Self {
            rows: HashMap::new(),
            state: State::Idle,
            again_at: None,
            kept_bytes,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub(super) fn again_at(&self) -> Option<Duration> {
        self.again_at
    }

    pub(super) fn put(&mut self, ticket: Ticket, row: OutboxRow) {
        self.rows.insert(ticket, row);
    }

    /// Takes the rows that were being recorded.
    pub(super) fn take_running(&mut self) -> Option<Vec<HeldRow>> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Running(asides) => Some(asides),
            State::Idle => None,
        }
    }
}

impl Machine {
    /// Begins to record what was put aside, if nothing is being recorded.
    pub(super) fn start_record(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let is_early = self.holds.again_at.is_some_and(|at| now < at);
        if !self.holds.is_idle() || is_early || self.memory.core.aside() == 0 {
            return;
        }
        let asides = self.memory.core.take_aside();
        effects.push(Effect::Record(self.checkpoint(&asides)));
        self.holds.again_at = None;
        self.holds.state = State::Running(asides);
    }

    fn checkpoint(&self, asides: &[HeldRow]) -> HoldCheckpoint {
        let terms = &self.terms;
        let checkpoint = HoldCheckpoint {
            token: terms.token.clone(),
            generation: terms.generation,
            layout: terms.layout.clone(),
            whole: match terms.phase {
                // They were kept whole before, and may stand nowhere else.
                Phase::Replay(_) => CopyPolicy::All,
                // The table is not read for them again.
                _ if !terms.order_is_told => CopyPolicy::All,
                _ => whole(terms.mark, terms.source.is_stream()),
            },
            entries: Vec::new(),
            kept: Vec::new(),
            mark: self.mark_of_dead(asides),
        };
        record(
            checkpoint,
            asides,
            &self.holds.rows,
            self.memory.core.held(),
        )
    }

    /// A dead letter is marked in the table where rows are marked one by one: it is kept elsewhere.
    fn mark_of_dead(&self, asides: &[HeldRow]) -> Option<Arc<Statement>> {
        let Marks::Rows(_) = &self.marks else {
            return None;
        };
        let is_whole = |ticket| self.holds.rows.get(ticket).is_some_and(OutboxRow::is_whole);
        let dead = asides
            .iter()
            .filter(|aside| is_dead(aside) && is_whole(&aside.ticket));
        let dead: Vec<_> = dead
            .map(|aside| Delivered {
                ticket: aside.ticket,
                seq: aside.seq,
                id: aside.id.clone(),
                lsn: aside.lsn,
                origin: aside.origin,
            })
            .collect();
        let resolved = self.memory.core.confirmable();
        self.marks.statement(&dead, resolved)
    }

    pub(super) fn take_record(
        &mut self,
        result: Result<u64, MarkError>,
        connection: Connection,
        now: Duration,
    ) -> Option<End> {
        let asides = self.holds.take_running()?;
        match result {
            Ok(bytes) => {
                self.holds.kept_bytes += bytes;
                self.note_recorded(&asides);
                None
            }
            Err(MarkError::NotLeader { .. }) => Some(End::Deposed),
            Err(failure) => {
                self.memory.core.keep_failed(asides);
                if connection == Connection::Closed {
                    return Some(End::Mark(failure));
                }
                warn!(error = %chain(&failure), "could not record blocked rows; trying again");
                self.holds.again_at = Some(now + MARK_AGAIN_AFTER);
                None
            }
        }
    }

    /// Whether so much is kept that nothing more may be held; what is kept can be replayed all the same.
    pub(super) fn too_much_is_kept(&self) -> Option<End> {
        let is_too_much = self.holds.kept_bytes > KEPT_BYTES_MAX;
        if !is_too_much || matches!(self.terms.phase, Phase::Replay(_)) {
            return None;
        }
        let (kept, most) = (self.holds.kept_bytes >> 20, KEPT_BYTES_MAX >> 20);
        Some(End::Halt(format!(
            "copies of held rows take {kept} MiB in `outboxd.kept`, more than {most} MiB; `outboxd blocked list` shows \
             what they wait for: fix it, then retry or skip it"
        )))
    }

    pub(super) fn note_recorded(&mut self, asides: &[HeldRow]) {
        self.memory.core.kept(asides);
        if let Marks::Ledger(ledger) = &mut self.marks {
            ledger.note_kept(&asides.iter().filter_map(|aside| aside.seq).collect());
        }
        for aside in asides {
            self.holds.rows.remove(&aside.ticket);
        }
        debug!(rows = asides.len(), "recorded as put aside");
    }
}

/// Which held rows are kept whole by a source of this kind.
fn whole(mark: Mark, is_stream: bool) -> CopyPolicy {
    match (mark, is_stream) {
        (Mark::None, _) => CopyPolicy::All,
        (_, true) => CopyPolicy::Missing,
        (_, false) => CopyPolicy::None,
    }
}

/// Writes down what becomes of rows that were put aside: the entries that hold them, and what is kept whole.
fn record(
    mut keep: HoldCheckpoint,
    asides: &[HeldRow],
    rows: &HashMap<Ticket, OutboxRow>,
    held: &Held,
) -> HoldCheckpoint {
    let mut entries = HashMap::new();
    for aside in asides {
        let Some(row) = rows.get(&aside.ticket) else {
            continue;
        };
        let what = what(&keep.layout, aside, row);
        if let Some(what) = &what {
            let entry = entries.entry(what.clone());
            let entry = entry.or_insert_with(|| entry_of(held, what.clone(), aside));
            if let (Some(seq), false) = (aside.seq, is_dead(aside)) {
                entry.held.insert(seq);
            }
        }
        // What was published stands in the table, and is not sent a second time.
        let is_published = matches!(aside.why, HoldReason::Published(_));
        if is_dead(aside) || keep.whole != CopyPolicy::None && !is_published {
            keep.kept.push(KeptRow::new(aside, row.clone(), what, held));
        }
    }
    keep.entries = entries.into_values().collect();
    keep
}

/// An entry with its first row: the one at fault, or the first that waits for the topic.
fn entry_of(held: &Held, what: What, aside: &HeldRow) -> HoldEntry {
    let first = |id: &RowId| if *id == aside.id { aside.seq } else { None };
    let mut entry = HoldEntry {
        what,
        held: RangeSet::new(),
        row_seq: aside.seq,
        row_id: aside.id.to_string(),
        reason: "topic".to_owned(),
        error: String::new(),
        followers: Followers::Wait,
    };
    match &aside.why {
        HoldReason::Topic(topic) => {
            if let Some(hold) = held.topic_hold(topic) {
                entry.error.clone_from(&hold.reason);
                if hold.is_refused {
                    "refused".clone_into(&mut entry.reason);
                }
            }
        }
        HoldReason::Blocked(aggregate)
        | HoldReason::Published(aggregate)
        | HoldReason::Dead {
            blocks: Some(aggregate),
            ..
        } => {
            if let Some(held) = held.aggregate(*aggregate) {
                (entry.row_seq, entry.row_id) = (first(&held.row), held.row.to_string());
                (entry.reason, entry.error) = (held.reason.clone(), held.error.clone());
                entry.followers = held.followers;
            }
        }
        HoldReason::Dead { blocks: None, .. } => {}
    }
    entry
}

fn is_dead(aside: &HeldRow) -> bool {
    matches!(aside.why, HoldReason::Dead { .. })
}

/// What the row waits behind; nothing where it is a dead letter alone.
fn what(layout: &Layout, aside: &HeldRow, row: &OutboxRow) -> Option<What> {
    let text = |column| {
        row.field(column)
            .map(|text| String::from_utf8_lossy(text).into_owned())
    };
    match &aside.why {
        HoldReason::Topic(topic) => Some(What::Topic(topic.clone())),
        HoldReason::Dead { blocks: None, .. } => None,
        HoldReason::Blocked(_) | HoldReason::Published(_) | HoldReason::Dead { .. } => {
            Some(What::Aggregate {
                kind: text(layout.aggregate_type),
                id: text(layout.aggregate_id),
            })
        }
    }
}
