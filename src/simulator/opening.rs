//! What a session settles before it reads: what the last one left, the slot, rows that were polled or skipped.

use super::mutations::Mutation;
use super::schedule::Mode;
use super::world::{World, tell};
use crate::config::Mark;
use crate::relay::session::CatchUp;
use crate::row::Lsn;

impl World {
    /// The relay halts on the slot of another outbox, until somebody names another one for it.
    fn name_another_slot(&mut self) {
        if self.rng.bool() {
            tell!(self, "somebody names a slot that nobody has");
            self.database.slot = None;
        }
    }

    /// Where rows with marks of their own were polled, the table is read in the place of what the slot holds.
    pub fn leave_to_the_table(&mut self, relay: usize) {
        if !self.setting.marks_rows() {
            return;
        }
        if self.relays[relay].mode == Mode::Polling {
            self.database.was_polled = true;
        } else if self.relays[relay]
            .carry_over
            .undecodable_commit_lsn
            .is_none()
            && self.database.was_polled
        {
            self.database.caught_up = false;
            let position = Lsn(self.server.wal);
            self.relays[relay].carry_over.undecodable_commit_lsn = Some(position);
        }
    }

    /// The slot moves behind what was read from the table in its place.
    pub fn pass(&mut self, relay: usize) {
        let undecodable = &mut self.relays[relay].carry_over.undecodable_commit_lsn;
        let Some(Lsn(position)) = undecodable.take() else {
            return;
        };
        self.server.flush();
        let to = position + 1;
        if let Some(slot) = &mut self.database.slot
            && slot.confirmed < to
        {
            (slot.confirmed, slot.persisted) = (to, to);
            tell!(self, "relay {relay} moves the slot to {to}");
            self.judge.slot_moved(to);
        }
        self.database.was_polled = false;
    }

    /// A row that is skipped does not stay unsent.
    pub fn mark_skipped(&mut self) {
        for held in self.database.held_of_requests() {
            self.judge.grant_logged(&held);
        }
        let skipped: Vec<_> = self.database.skipped().collect();
        for (seq, id) in skipped {
            if self.setting.marks_rows() && self.resists(seq, id).is_some() {
                self.database.keep_unmarked(id);
                continue;
            }
            if self.server.unsent(seq, id).is_some() {
                match self.setting.mark {
                    Mark::SentAt => self.server.set_sent(id),
                    Mark::Delete => self.server.take_row(seq),
                    Mark::Ledger | Mark::None => {}
                }
            }
        }
    }

    pub fn record_carry_over(&mut self, relay: usize) {
        let carry_over = &mut self.relays[relay].carry_over;
        self.database.replayed(&carry_over.replayed);
        carry_over.replayed.clear();
        match carry_over.catch_up {
            CatchUp::AsRecorded => return,
            CatchUp::Demanded => self.database.caught_up = false,
            CatchUp::Done => self.database.caught_up = true,
        }
        carry_over.catch_up = CatchUp::AsRecorded;
        self.wrote();
    }

    /// Makes the slot where the table is read anyway; a lost one only once that is recorded.
    pub fn prepare_slot(&mut self) -> bool {
        match (self.database.slot, self.database.caught_up) {
            (Some(slot), _) if slot.is_foreign && self.mutation != Mutation::SlotTaken => {
                self.name_another_slot();
                false
            }
            (Some(_), _) => true,
            (None, false) => {
                self.create_slot();
                true
            }
            (None, true) => {
                tell!(self, "the slot is lost: the table is to be read");
                self.database.caught_up = false;
                self.wrote();
                false
            }
        }
    }
}
