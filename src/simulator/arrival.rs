//! A batch on its way from a source to the machine: what the tables and the source know of its rows.

use super::event::{Flaw, id_of};
use super::world::World;
use crate::mark::Marks;
use crate::mark::ledger::Meaning;
use crate::relay::Phase;
use crate::relay::machine::{Arrival, Input};
use crate::row::OutboxRow;
use crate::source::SourceError;

impl World {
    /// Lets the machine take the next batch, if it wants one.
    pub fn take_batch(&mut self, relay: usize) {
        let has_moved_slot = !(self.moves_slot(relay) && self.is_far_behind());
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        if !session.machine.wants_batch(has_moved_slot) {
            return;
        }
        if session.lost.is_some() && self.rng.bool() {
            return self.give(relay, Input::SourceEnded(SourceError::Ended));
        }
        let Some(batch) = session.batches.pop_front() else {
            return;
        };
        session.is_resolved &= batch.rows.is_empty();
        let is_ledger = matches!(session.machine.marks(), Marks::Ledger(_));
        if is_ledger && session.machine.terms().phase != Phase::CatchUp {
            session.rolled_back.extend(&batch.rolled_back);
        }
        for row in &batch.rows {
            self.excuse_rejected(id_of(row));
        }
        let known = batch.rows.iter().map(|row| self.is_known(relay, row));
        let known: Vec<bool> = known.collect();
        if known.contains(&true) && self.is_reused(relay, &batch.rows) {
            let text = "a number is called another row's".to_owned();
            return self.judge.breaks("generation", text);
        }
        self.give(relay, Input::Arrived(Arrival { batch, known }));
    }

    fn excuse_rejected(&mut self, id: u32) {
        let event = self.judge.event(id);
        let is_rejected = event.is_some_and(|event| event.flaw == Flaw::Rejected);
        if is_rejected && !self.broker.mended.contains(&id) {
            self.excuse_dead(id);
        }
    }

    /// Whether a row was marked by an earlier session, or the source was told to leave it out.
    fn is_known(&self, relay: usize, row: &OutboxRow) -> bool {
        let Some(session) = &self.relays[relay].session else {
            return false;
        };
        if session.held.contains(&id_of(row)) {
            return true;
        }
        if !session.is_stream() {
            return false;
        }
        let seq = row.seq.unwrap_or(0);
        match session.machine.marks() {
            Marks::Ledger(ledger) => match ledger.meaning(seq, row.lsn) {
                Meaning::Sent | Meaning::Reused => true,
                Meaning::Ask { .. } => self.database.is_sent(seq),
                Meaning::New => false,
            },
            Marks::Rows(marks) => self.was_marked(marks, row),
            Marks::None => false,
        }
    }

    fn is_reused(&self, relay: usize, rows: &[OutboxRow]) -> bool {
        let Some(session) = &self.relays[relay].session else {
            return false;
        };
        let Marks::Ledger(ledger) = session.machine.marks() else {
            return false;
        };
        session.is_stream()
            && rows.iter().any(|row| {
                let meaning = ledger.meaning(row.seq.unwrap_or(0), row.lsn);
                meaning == Meaning::Reused
            })
    }
}
