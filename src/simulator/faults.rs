//! What goes wrong, and what people do: crashes, frozen relays, lost connections, slots, topics, releases.

use std::time::Duration;

use super::broker::TOPIC_PARTITIONS_MAX;
use super::database::{Blocked, BlockedState, Kept, KeptState, Slot};
use super::schedule::Mode;
use super::session::Loss;
use super::world::{TTL, World, tell};
use crate::config::FaultPolicy;
use crate::mark::Statement;
use crate::state::hold::What;

impl World {
    pub fn elapse(&mut self) {
        self.now += Duration::from_millis(self.rng.u64(100..6_000));
    }

    pub fn freeze(&mut self, relay: usize) {
        tell!(self, "relay {relay} freezes");
        self.relays[relay].is_frozen = true;
        if self.rng.bool() {
            self.now += TTL + Duration::from_millis(self.rng.u64(..2_000));
            self.cut_off(relay);
        }
    }

    /// The server ends a connection that nobody answers on.
    pub fn cut_off(&mut self, relay: usize) {
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        session.lost.get_or_insert(Loss::Connection);
        if let Some(slot) = &mut self.database.slot
            && slot.reader == Some(session.connection)
        {
            slot.reader = None;
        }
    }

    pub fn kill(&mut self, relay: usize) {
        tell!(self, "relay {relay} is killed");
        self.grant_in_flight(relay);
        self.grant_replay(relay);
        self.cut_off(relay);
        self.abandon_statements(relay);
        if let Some(producer) = self.relays[relay].producer.take() {
            self.end_in_broker(producer);
        }
        if self.rng.bool() {
            self.dead.push(self.relays[relay].keeper.owner());
        }
        self.relays[relay].start_again(&self.setting);
    }

    pub fn ask_to_stop(&mut self, relay: usize) {
        tell!(self, "relay {relay} is asked to stop");
        self.relays[relay].is_stopping = true;
    }

    pub fn disconnect(&mut self, relay: usize) {
        tell!(self, "relay {relay} loses its connection");
        self.cut_off(relay);
        self.abandon_statements(relay);
    }

    pub fn crash_server(&mut self) {
        tell!(
            self,
            "the server crashes, flushed {} of {}",
            self.server.flushed,
            self.server.wal
        );
        self.server.crash();
        self.judge.crashed(&self.server);
        self.end_connections();
    }

    pub fn restart_server(&mut self) {
        tell!(self, "the server restarts");
        self.server.flush();
        self.server.crash();
        self.judge.crashed(&self.server);
        self.end_connections();
    }

    pub fn end_connections(&mut self) {
        self.late.clear();
        for process in &mut self.relays {
            process.keeper.asked = None;
            process.keeper.connection += 1;
            if let Some(session) = &mut process.session {
                session.lost = Some(Loss::Server);
                session.forget_statements();
            }
        }
        let Some(slot) = &mut self.database.slot else {
            return;
        };
        slot.reader = None;
        slot.confirmed = slot.persisted;
        if !self.setting.has_marks() {
            self.judge.grant_behind(slot.confirmed);
        }
    }

    pub fn persist_slot(&mut self) {
        if let Some(slot) = &mut self.database.slot {
            slot.persisted = slot.confirmed;
        }
    }

    pub fn advance_slot(&mut self) {
        let Some(slot) = &mut self.database.slot else {
            return;
        };
        if slot.reader.is_some() || slot.is_foreign {
            return;
        }
        let (from, to) = (slot.confirmed, self.server.flushed);
        tell!(self, "somebody advances the slot from {from} to {to}");
        let Some(slot) = &mut self.database.slot else {
            return;
        };
        (slot.confirmed, slot.persisted) = (to, to);
        self.judge.slot_moved(to);
        for commit in &self.server.commits {
            if commit.end > from && commit.end <= to {
                for event in &commit.events {
                    self.judge.miss(event.id);
                }
            }
        }
    }

    pub fn drop_slot(&mut self) {
        let is_free = |slot: Slot| slot.reader.is_none() && !slot.is_foreign;
        if self.database.slot.is_some_and(is_free) {
            tell!(self, "the slot is dropped");
            self.database.slot = None;
        }
    }

    /// Another outbox of the database makes a slot where none stands, and reads what is its own.
    pub fn let_neighbour_work(&mut self) {
        let flushed = self.server.flushed;
        match &mut self.database.slot {
            None => {
                tell!(self, "another outbox makes the slot at {flushed}");
                self.database.slot = Some(Slot {
                    confirmed: flushed,
                    persisted: flushed,
                    reader: None,
                    is_foreign: true,
                });
            }
            Some(slot) if slot.is_foreign && slot.reader.is_none() => {
                (slot.confirmed, slot.persisted) = (flushed, flushed);
                tell!(self, "another outbox confirms {flushed}");
            }
            Some(_) => {}
        }
    }

    pub fn change_topic(&mut self) {
        let index = self.rng.usize(..2);
        match self.rng.u8(..3) {
            0 => self.broker.is_down = !self.broker.is_down,
            _ => self.broker.denied[index] = !self.broker.denied[index],
        }
        tell!(
            self,
            "topics denied: {:?}, brokers down: {}",
            self.broker.denied,
            self.broker.is_down
        );
    }

    pub fn change_leader(&mut self) {
        self.broker.change_leader(&mut self.rng);
        tell!(self, "without a leader: {:?}", self.broker.leaderless);
    }

    pub fn grow_topic(&mut self) {
        let topic = self.rng.usize(..2);
        self.broker.partitions[topic] = TOPIC_PARTITIONS_MAX;
        tell!(
            self,
            "the topics have {:?} partitions",
            self.broker.partitions
        );
    }

    pub fn rotate_secrets(&mut self, relay: usize) {
        tell!(self, "relay {relay} has other secrets than its producer");
        let process = &mut self.relays[relay];
        process.is_outdated = process.producer.is_some();
    }

    /// Somebody mends a row and retries it, skips it, or replays a dead letter.
    pub fn operate(&mut self) {
        let is_mended = self.rng.bool();
        let chosen = self.rng.usize(..8);
        let is_blocked = |b: &&mut Blocked| {
            b.state == BlockedState::Blocked && matches!(b.what, What::Aggregate { .. })
        };
        if let Some(entry) = self
            .database
            .blocked
            .iter_mut()
            .filter(is_blocked)
            .nth(chosen % 3)
        {
            if is_mended && let Ok(id) = entry.row_id.parse() {
                self.broker.mended.insert(id);
            }
            entry.state = match self.rng.bool() || is_mended {
                true => BlockedState::Retry,
                false => BlockedState::Skip,
            };
            let (row, state) = (entry.row_id.clone(), entry.state);
            let id = row.parse().unwrap_or(0);
            if state == BlockedState::Skip {
                self.judge.excuse(id);
            }
            tell!(
                self,
                "somebody asks for {state:?} of row {row}, mended: {is_mended}"
            );
            return;
        }
        let is_dead = |kept: &&mut Kept| kept.state == KeptState::Dead;
        if self.setting.policy == FaultPolicy::Continue
            && let Some(kept) = self
                .database
                .kept
                .iter_mut()
                .filter(is_dead)
                .nth(chosen % 2)
        {
            kept.state = KeptState::Replay;
            if let Ok(id) = kept.row_id.parse() {
                self.broker.mended.insert(id);
            }
            let row = kept.row_id.clone();
            tell!(self, "somebody replays row {row}");
        }
    }

    pub fn switch_mode(&mut self, relay: usize) {
        let process = &mut self.relays[relay];
        process.next_mode = match process.next_mode {
            Mode::Stream => Mode::Polling,
            Mode::Polling => Mode::Stream,
        };
        let mode = process.next_mode;
        tell!(self, "relay {relay} is to start again by {mode:?}");
        self.ask_to_stop(relay);
    }

    pub fn execute_late(&mut self) {
        if let Some(late) = self.late.pop() {
            tell!(self, "a late statement is executed");
            match &*late {
                Statement::Ledger(checkpoint) => drop(self.execute_mark(checkpoint)),
                Statement::Rows(mark) => drop(self.mark_rows(mark, &mark.rows)),
            }
        }
    }
}
