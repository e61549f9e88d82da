//! Polling turns on the simulated server: each read is a snapshot of its own, and writers run in between.

use super::mutations::Mutation;
use super::session::{End, Source};
use super::world::{World, tell};
use crate::mark::ledger::Ledger;
use crate::ranges::RangeSet;
use crate::source::Batch;
use crate::source::holes::{Arrivals, Death, Holes, LockReading, Plan};

/// What the turns over one connection have learned.
#[derive(Clone)]
pub struct Turns {
    first: i64,
    top: i64,
    top_id: Option<u32>,
    holes: Holes,
}

impl Turns {
    pub fn new(first: i64, ledger: Option<&Ledger>) -> Self {
        let top = ledger.map_or(0, Ledger::highest).max(first - 1);
        let settled = ledger.map(Ledger::settled).unwrap_or_default();
        let mut holes = Holes::new(Death::OnLocks);
        holes.note(settled.gaps(first..=top).collect());
        Self {
            first,
            top,
            top_id: None,
            holes,
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
    /// One turn; it ends the session when the server is lost in it, or the highest row is another one.
    pub fn poll(&mut self, relay: usize) -> Option<End> {
        let session = self.relays[relay].session.as_ref()?;
        let Source::Numbers(turns) = &session.source else {
            return None;
        };
        let mut turns = turns.clone();
        let limit = self.rng.usize(1..=5);
        let Some((new, is_full)) = self.read_new(&mut turns, limit) else {
            return Some(End::Lost);
        };
        turns.note(&new);
        self.write(4);
        let arrivals = match new.is_empty() {
            true => Arrivals::Nothing,
            false => Arrivals::Rows,
        };
        let (found, dead) = self.fill_holes(&mut turns, arrivals);
        self.judge.dead(&dead, &self.server);
        let lsn = self.server.wal;
        self.write(2);
        let is_in_time = new.is_empty() && found.is_empty() || self.pass_gate(lsn);
        if !is_in_time {
            return Some(End::Lost);
        }
        let mut numbers: RangeSet = new.iter().map(|(seq, _)| *seq).collect();
        numbers.extend(&found);
        tell!(
            self,
            "relay {relay} polls {numbers:?}, found {found:?}, dead {dead:?}, at {lsn}"
        );
        let rows = numbers.ranges().flatten();
        let rows = rows.filter_map(|seq| Some(self.server.rows.get(&seq)?.row(lsn)));
        let batch = Batch {
            rows: rows.collect(),
            dead,
            caught_up: !is_full,
            ..Batch::default()
        };
        let session = self.relays[relay].session.as_mut()?;
        session.batches.push_back(batch);
        session.source = Source::Numbers(turns);
        None
    }

    fn read_new(&mut self, turns: &mut Turns, limit: usize) -> Option<(Vec<(i64, u32)>, bool)> {
        let top = self.server.rows.get(&turns.top).map(|event| event.id);
        match (top, turns.top_id) {
            (Some(id), None) => turns.top_id = Some(id),
            (found, known) if found == known => {}
            _ => return None,
        }
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
                holes.plan(&reading, arrivals, crate::outbox::Lsn(0))
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
        let dead = holes.answer(&plan, &found);
        (found, dead)
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

    pub fn look_up(&self, plan: &Plan) -> RangeSet {
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
