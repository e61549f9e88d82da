//! Polling turns on the simulated server: each read is a snapshot of its own, and writers run in between; the slot that is
//! moved behind them.

use std::collections::BTreeSet;

use super::database::Slot;
use super::mutations::Mutation;
use super::session::Source;
use super::world::{World, tell};
use crate::config::CatchUpFrom;
use crate::mark::ledger::Ledger;
use crate::row::Lsn;
use crate::row::ranges::RangeSet;
use crate::source::holes::{Arrivals, Holes, LockReading, Plan, RollbackProof, VirtualTransaction};
use crate::source::polling::CaughtUp;
use crate::source::{Batch, Boundary};

/// How far a slot may lag when a stream begins on it.
const LAG_MAX: u64 = 25;

/// What the turns over one connection have learned.
#[derive(Clone)]
pub struct Turns {
    first: i64,
    top: i64,
    top_id: Option<u32>,
    holes: Holes,
    says: CaughtUp,
    round: Option<Round>,
}

/// A position, and who is left of those that wrote after it was read.
#[derive(Clone)]
struct Round {
    position: u64,
    left: BTreeSet<VirtualTransaction>,
}

impl Turns {
    pub fn new(first: i64, ledger: Option<&Ledger>, says: CaughtUp) -> Self {
        let top = ledger.map_or(0, Ledger::highest).max(first - 1);
        let settled = ledger.map(Ledger::settled).unwrap_or_default();
        let mut holes = Holes::new(RollbackProof::OnLocks);
        holes.note(settled.gaps(first..=top).collect());
        Self {
            first,
            top,
            top_id: None,
            holes,
            says,
            round: None,
        }
    }

    fn note(&mut self, new: &[(i64, u32)]) {
        let Some((last, id)) = new.last().copied() else {
            return;
        };
        let numbers: RangeSet = new.iter().map(|(seq, _)| *seq).collect();
        let from = self.first.max(self.top + 1);
        self.holes.note(numbers.gaps(from..=last).collect());
        (self.top, self.top_id) = (last, Some(id));
    }
}

impl World {
    /// One turn; nothing when the server is lost in it, or the highest row is another one.
    pub fn poll(&mut self, relay: usize) -> Option<()> {
        let session = self.relays[relay].session.as_ref()?;
        let Source::Numbers(turns) = &session.source else {
            return None;
        };
        let mut turns = turns.clone();
        let position = self.look_at_writers(&mut turns);
        let limit = self.rng.usize(1..=5);
        let (new, is_full) = self.read_new(&mut turns, limit)?;
        turns.note(&new);
        let passed = position.filter(|_| !is_full);
        if passed.is_some() {
            turns.round = None;
        }
        self.write(4);
        let arrivals = match new.is_empty() {
            true => Arrivals::Nothing,
            false => Arrivals::Rows,
        };
        let (found, rolled_back) = self.fill_holes(&mut turns, arrivals);
        self.judge.rolled_back(&rolled_back, &self.server);
        let lsn = self.server.wal;
        self.write(2);
        let is_in_time = new.is_empty() && found.is_empty() || self.pass_gate(lsn);
        if !is_in_time {
            return None;
        }
        let mut numbers: RangeSet = new.iter().map(|(seq, _)| *seq).collect();
        numbers.extend(&found);
        tell!(
            self,
            "relay {relay} polls {numbers:?}, found {found:?}, rolled back {rolled_back:?}, at {lsn}"
        );
        let rows = numbers.ranges().flatten();
        let rows = rows.filter_map(|seq| Some(self.server.rows.get(&seq)?.row(lsn)));
        let rows: Vec<_> = rows.collect();
        let boundary = passed.map(|position| Boundary {
            rows: rows.len(),
            lsn: Lsn(position),
        });
        let batch = Batch {
            rows,
            boundary,
            rolled_back,
            caught_up: !is_full,
        };
        let session = self.relays[relay].session.as_mut()?;
        session.batches.push_back(batch);
        session.source = Source::Numbers(turns);
        Some(())
    }

    /// The position before which every commit is visible to what is read next.
    fn look_at_writers(&mut self, turns: &mut Turns) -> Option<u64> {
        if turns.says == CaughtUp::WithTheTable {
            return None;
        }
        match &mut turns.round {
            None => {
                let position = self.server.flushed;
                self.write(2);
                let left = self.read_locks().holders.into_keys().collect();
                turns.round = Some(Round { position, left });
            }
            Some(round) => {
                let reading = self.read_locks();
                round.left.retain(|name| reading.holders.contains_key(name));
            }
        }
        let is_over = |round: &&Round| {
            round.left.is_empty() || self.mutation == Mutation::PositionWithoutWriters
        };
        turns
            .round
            .as_ref()
            .filter(is_over)
            .map(|round| round.position)
    }

    /// Whether the slot lags too far for a stream; a slot that is gone does.
    pub fn is_far_behind(&self) -> bool {
        // Once all writers have ended what the relay writes is most of the lag.
        let lag_max = match self.server.closed {
            true => 4 * LAG_MAX,
            false => LAG_MAX,
        };
        let is_far = |slot: Slot| self.server.flushed.saturating_sub(slot.confirmed) > lag_max;
        self.setting.catch_up == CatchUpFrom::Table && self.database.slot.is_none_or(is_far)
    }

    /// The slot follows what may be confirmed, unless somebody reads it; nothing where it is gone.
    pub fn move_slot(&mut self, relay: usize) -> Option<()> {
        let session = self.relays[relay].session.as_ref()?;
        let lsn = session.confirm;
        // Else what was held when it was confirmed may have been released since.
        let is_strict = lsn > session.confirmed_before && self.database.holds_lease(&session.token);
        let slot = self.database.slot.as_mut()?;
        if slot.is_foreign {
            return None;
        }
        if slot.reader.is_some() || lsn <= slot.confirmed {
            return Some(());
        }
        slot.confirmed = lsn;
        tell!(self, "relay {relay} moves the slot to {lsn}");
        match is_strict {
            true => self.judge.passed(lsn, &self.server, &self.database),
            false => self
                .judge
                .confirmed(lsn, &self.server, &self.database, self.setting.mark),
        }
        Some(())
    }

    fn read_new(&mut self, turns: &mut Turns, limit: usize) -> Option<(Vec<(i64, u32)>, bool)> {
        let top = self.server.rows.get(&turns.top).map(|event| event.id);
        match (top, turns.top_id) {
            (Some(id), None) => turns.top_id = Some(id),
            (found, known) if found == known => {}
            _ => return None,
        }
        self.judge.table_read(self.server.wal);
        let rows = self.server.rows.range(turns.top + 1..).take(limit);
        let new: Vec<_> = rows.map(|(seq, event)| (*seq, event.id)).collect();
        let is_full = new.len() == limit;
        Some((new, is_full))
    }

    fn fill_holes(&mut self, turns: &mut Turns, arrivals: Arrivals) -> (RangeSet, RangeSet) {
        let holes = &mut turns.holes;
        if holes.is_empty() {
            return Default::default();
        }
        let mut plan = match self.rng.u8(..10) {
            0..4 => holes.plan_without_locks(),
            _ => {
                let reading = self.read_locks();
                holes.plan(&reading, arrivals, Lsn(0))
            }
        };
        self.write(4);
        let mut found = self.look_up(&plan);
        while !found.is_empty() {
            let Some(wider) = holes.widen(&plan, &self.server.snapshot()) else {
                break;
            };
            self.write(3);
            plan = wider;
            found = self.look_up(&plan);
        }
        let rolled_back = holes.answer(&plan, &found);
        (found, rolled_back)
    }

    pub fn read_locks(&mut self) -> LockReading {
        let before = self.server.commits.len();
        let mut reading = self.server.read_locks(&mut self.rng);
        self.note_commits(before);
        if self.mutation == Mutation::DeadWhileAlive {
            reading.holders.pop_first();
        }
        reading
    }

    pub fn look_up(&mut self, plan: &Plan) -> RangeSet {
        self.judge.table_read(self.server.wal);
        let visible = |range| self.server.rows.range(range).map(|(&seq, _)| seq);
        plan.look_up.ranges().flat_map(visible).collect()
    }

    /// Waits until the log is flushed as far as what was read; the server may crash first.
    pub fn pass_gate(&mut self, lsn: u64) -> bool {
        if self.server.flushed >= lsn {
            return true;
        }
        if self.rng.u8(..6) == 0 {
            return false;
        }
        self.server.flush();
        true
    }
}
