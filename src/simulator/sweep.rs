//! Beside the stream: numbers that never become rows, and rows that the stream missed.

use super::event::Event;
use super::mutations::Mutation;
use super::world::{World, tell};
use crate::mark::Marks;
use crate::relay::machine::{Input, Look};
use crate::row::Lsn;
use crate::row::ranges::RangeSet;
use crate::source::Batch;
use crate::source::holes::Arrivals;
use crate::source::polling::PollError;
use crate::source::replication::sweep::{Judgement, Missed, Progress};

impl World {
    /// The look that was asked for, or another question.
    pub fn look(&mut self, relay: usize) {
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        let Some(progress) = session.looking.take() else {
            return self.give(relay, Input::LookDue);
        };
        if session.lost.is_some() {
            return self.looked(relay, Err(PollError::Unexpected("nothing")), true);
        }
        let judgement = match session.machine.marks() {
            Marks::Ledger(_) => self.look_at_holes(relay, &progress),
            Marks::Rows(_) | Marks::None => self.look_for_unmarked(relay, &progress),
        };
        self.relays[relay].called_missed = self
            .judge
            .called_missed(&judgement.missed.numbers, &self.server);
        self.looked(relay, Ok(judgement), false);
    }

    fn looked(&mut self, relay: usize, judgement: Result<Judgement, PollError>, is_closed: bool) {
        let look = Look {
            judgement,
            is_closed,
            awaits_stream: false,
        };
        self.give(relay, Input::Looked(look));
    }

    /// `GapWatch::look`.
    fn look_at_holes(&mut self, relay: usize, progress: &Progress) -> Judgement {
        let mut judgement = Judgement::default();
        let Some(session) = &self.relays[relay].session else {
            return judgement;
        };
        let mut highest = session.highest;
        if self.rng.bool() {
            let last = self.server.rows.last_key_value();
            highest = last.map_or(self.setting.first - 1, |(seq, _)| *seq);
        }
        let numbers = self.setting.first..=progress.top.max(highest);
        let open: RangeSet = progress.settled.gaps(numbers).collect();
        let mut holes = session.holes.clone();
        holes.track(&open);
        if !holes.is_empty() {
            self.write(3);
            let mut reading = self.read_locks();
            self.write(3);
            reading.position = Lsn(self.server.wal);
            let passed = match self.mutation {
                Mutation::DeadBeforePassage => Lsn(u64::MAX),
                _ => progress.passed,
            };
            let plan = holes.plan(&reading, Arrivals::Nothing, passed);
            self.write(3);
            let found = match self.mutation {
                Mutation::DeadBeforePassage => RangeSet::new(),
                _ => self.look_up(&plan),
            };
            judgement.rolled_back = holes.answer(&plan, &found);
            judgement.missed.numbers = found.intersection(&plan.last);
        }
        self.judge.rolled_back(&judgement.rolled_back, &self.server);
        tell!(self, "relay {relay} looks at holes: {judgement:?}");
        if let Some(session) = &mut self.relays[relay].session {
            (session.holes, session.highest) = (holes, highest);
            session.rolled_back.extend(&judgement.rolled_back);
        }
        judgement
    }

    /// `UnmarkedWatch::look`: rows that stand unsent, and those that still do when the stream has passed them.
    fn look_for_unmarked(&mut self, relay: usize, progress: &Progress) -> Judgement {
        let mut judgement = Judgement::default();
        let Some(session) = &mut self.relays[relay].session else {
            return judgement;
        };
        let Some((candidates, position)) = session.candidates.take() else {
            let standing = self.server.all_unsent().copied().collect();
            session.candidates = Some((standing, Lsn(self.server.wal)));
            return judgement;
        };
        if position > progress.passed {
            session.candidates = Some((candidates, position));
            return judgement;
        }
        self.write(3);
        let is_missed = |event: &&Event| {
            self.server.unsent(event.seq, event.id).is_some()
                && !self.database.is_kept(event.id)
                && !progress.settled.contains(event.seq)
        };
        let missed = candidates.iter().filter(is_missed).map(|event| event.seq);
        judgement.missed = Missed {
            numbers: missed.collect(),
            ..Missed::default()
        };
        judgement
    }

    /// The defect of a sweep that goes on beside the stream.
    pub fn sweep_without_hold(&mut self, relay: usize) {
        let process = &mut self.relays[relay];
        let Some(session) = &mut process.session else {
            return;
        };
        let of_found = |event: &&Event| process.found.contains(&event.id);
        let rows = self.server.rows.values().filter(of_found);
        let rows = rows.map(|event| event.row(self.server.wal)).collect();
        session.batches.push_front(Batch {
            rows,
            ..Batch::default()
        });
    }
}
