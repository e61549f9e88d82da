//! Beside the stream: numbers that never become rows, and rows that the stream missed.

use super::event::Event;
use super::mutations::Mutation;
use super::session::End;
use super::world::{World, tell};
use crate::row::Lsn;
use crate::row::ranges::RangeSet;
use crate::source::holes::Arrivals;

impl World {
    /// One look of the hole watch, and what follows.
    pub fn look_for_missed(&mut self, relay: usize) -> Option<End> {
        let process = &self.relays[relay];
        let session = process.session.as_ref()?;
        let passed = process.core.passed()?;
        if !session.is_stream() {
            return None;
        }
        let ledger = session.ledger.as_ref()?;
        let mut settled = process.core.numbers();
        settled.extend(ledger.accounted());
        let top = session.top.max(ledger.highest());
        if session.lost.is_some() {
            return Some(End::Lost);
        }
        let mut highest = session.highest;
        if self.rng.bool() {
            let last = self.server.rows.last_key_value();
            highest = last.map_or(self.setting.first - 1, |(seq, _)| *seq);
        }
        let open: RangeSet = settled
            .gaps(self.setting.first..=top.max(highest))
            .collect();
        let mut holes = session.holes.clone();
        holes.track(&open);
        let (mut rolled_back, mut missed) = (RangeSet::new(), RangeSet::new());
        if !holes.is_empty() {
            self.write(3);
            let mut reading = self.read_locks();
            self.write(3);
            reading.position = Lsn(self.server.wal);
            let passed = match self.mutation {
                Mutation::DeadBeforePassage => Lsn(u64::MAX),
                _ => passed,
            };
            let plan = holes.plan(&reading, Arrivals::Nothing, passed);
            self.write(3);
            let found = match self.mutation {
                Mutation::DeadBeforePassage => RangeSet::new(),
                _ => self.look_up(&plan),
            };
            rolled_back = holes.answer(&plan, &found);
            missed = found.intersection(&plan.last);
        }
        self.judge.rolled_back(&rolled_back, &self.server);
        let session = self.relays[relay].session.as_mut()?;
        (session.holes, session.highest) = (holes, highest);
        if let Some(ledger) = &mut session.ledger {
            ledger.note_rolled_back(&rolled_back);
            session.rolled_back.extend(&rolled_back);
        }
        if !rolled_back.is_empty() || !missed.is_empty() {
            tell!(
                self,
                "relay {relay} finds {rolled_back:?} rolled back and {missed:?} missed"
            );
        }
        self.take_missed(relay, &missed)
    }

    /// `UnmarkedWatch::look`: rows that stand unsent, and those that still do when the stream has passed them.
    pub fn look_for_unmarked(&mut self, relay: usize) -> Option<End> {
        let process = &mut self.relays[relay];
        let passed = process.core.passed()?;
        let session = process.session.as_mut()?;
        if !session.is_stream() {
            return None;
        }
        if session.lost.is_some() {
            return Some(End::Lost);
        }
        let Some((candidates, position)) = session.candidates.take() else {
            let standing = self.server.all_unsent().copied().collect();
            session.candidates = Some((standing, Lsn(self.server.wal)));
            return None;
        };
        if position > passed {
            session.candidates = Some((candidates, position));
            return None;
        }
        let mut settled = process.core.numbers();
        settled.extend(&session.owed().filter_map(|row| row.seq).collect());
        self.write(3);
        let is_missed = |event: &&Event| {
            self.server.unsent(event.seq, event.id).is_some()
                && !self.database.is_kept(event.id)
                && !settled.contains(event.seq)
        };
        let missed = candidates.iter().filter(is_missed).map(|event| event.seq);
        let missed: RangeSet = missed.collect();
        self.take_missed(relay, &missed)
    }

    fn take_missed(&mut self, relay: usize, missed: &RangeSet) -> Option<End> {
        let news = missed.difference(&self.relays[relay].reread);
        if news.is_empty() {
            return None;
        }
        let found = self.judge.called_missed(&news, &self.server);
        let process = &mut self.relays[relay];
        process.found.extend(found);
        process.reread.extend(&news);
        if self.mutation != Mutation::SweepWithoutHold {
            return Some(End::Reread);
        }
        let rows = news.ranges().flatten();
        let rows = rows.filter_map(|seq| Some(self.server.rows.get(&seq)?.row(self.server.wal)));
        process.session.as_mut()?.swept.extend(rows);
        None
    }
}
