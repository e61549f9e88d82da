//! The world of one schedule: server, database, brokers, relays and the judge; takes the steps of a schedule.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::broker::{Answer, Broker};
use super::database::{BlockedState, Database, Slot};
use super::event::Flaw;
use super::judge::Judge;
use super::mutations::Mutation;
use super::relay::{Process, Told};
use super::schedule::{Kind, Mode, Schedule, Setting, Step};
use super::server::Server;
use crate::config::{CatchUpFrom, FaultPolicy};
use crate::core::{SessionEnd, TopicPartition, TopicState};
use crate::mark::Statement;
use crate::relay::machine::Effect;
use crate::state::hold::What;

pub const TTL: Duration = Duration::from_secs(4);
/// Without marks a row that is refused lets a catch-up begin anew; and writers that nobody sees go on only where locks are
/// read, which takes many looks.
const ROUNDS_MAX: usize = 8_000;

/// Everything there is.
pub struct World {
    pub setting: Setting,
    pub mutation: Mutation,
    pub rng: Rng,
    pub now: Duration,
    pub server: Server,
    pub database: Database,
    pub broker: Broker,
    pub relays: Vec<Process>,
    pub judge: Judge,
    /// Marks whose relays have given their connections up.
    pub late: Vec<Arc<Statement>>,
    /// Kept for its room.
    pub effects: Vec<Effect>,
    /// Owners of the lease whose processes are proven dead.
    pub dead: Vec<String>,
    pub connections: u64,
    /// What happened, where somebody wants to read it.
    pub trace: Option<Vec<String>>,
}

/// Writes down what happened, where somebody wants to read it.
macro_rules! tell {
    ($world:expr, $($text:tt)*) => {
        if let Some(trace) = &mut $world.trace {
            trace.push(format!($($text)*));
        }
    };
}
pub(super) use tell;

impl World {
    pub fn new(setting: Setting, mutation: Mutation, trace: Option<Vec<String>>) -> Self {
        let relays = (0..setting.relays).map(|number| Process::new(number, TTL, &setting));
        Self {
            setting,
            mutation,
            rng: Rng::with_seed(0),
            now: Duration::ZERO,
            server: Server::new(setting.first, setting.habits),
            database: Database::default(),
            broker: Broker::default(),
            relays: relays.collect(),
            judge: Judge::default(),
            late: Vec::new(),
            effects: Vec::new(),
            dead: Vec::new(),
            connections: 0,
            trace,
        }
    }

    /// Runs a schedule to its end and heals the world; returns the first promise that was broken.
    pub fn run(&mut self, schedule: &Schedule) -> Option<String> {
        let mut kinds = schedule.steps.iter().map(|step| step.kind);
        self.judge.reads_the_table = self.setting.mode == Mode::Polling
            || self.setting.catch_up == CatchUpFrom::Table
            || kinds.any(|kind| kind == Kind::SwitchMode);
        for step in &schedule.steps {
            self.step(*step);
            if self.judge.broken.is_some() {
                return self.judge.broken.clone();
            }
        }
        self.heal();
        self.judge.broken.clone()
    }

    fn step(&mut self, step: Step) {
        self.rng = Rng::with_seed(step.salt);
        self.now += Duration::from_millis(self.rng.u64(1..60));
        let chosen = self.rng.usize(..self.relays.len());
        match step.kind {
            Kind::Write => self.write(8),
            Kind::Flush => self.server.flush(),
            Kind::Relay => self.work(chosen, 4),
            Kind::Broker => self.handle_request(),
            Kind::Report => self.report(chosen, 6),
            Kind::Elapse => self.elapse(),
            Kind::Kill => self.kill(chosen),
            Kind::Freeze => self.freeze(chosen),
            Kind::Thaw => self.relays[chosen].is_frozen = false,
            Kind::Stop => self.ask_to_stop(chosen),
            Kind::Disconnect => self.disconnect(chosen),
            Kind::FailProducer => self.fail_producer(chosen, Vec::new()),
            Kind::CrashServer => self.crash_server(),
            Kind::RestartServer => self.restart_server(),
            Kind::PersistSlot => self.persist_slot(),
            Kind::Gap => self.server.is_published = !self.server.is_published,
            Kind::AdvanceSlot => self.advance_slot(),
            Kind::DropSlot => self.drop_slot(),
            Kind::Neighbour => self.let_neighbour_work(),
            Kind::Topic => self.change_topic(),
            Kind::Leader => self.change_leader(),
            Kind::Grow => self.grow_topic(),
            Kind::Rotate => self.rotate_secrets(chosen),
            Kind::Operator => self.operate(),
            Kind::SwitchMode => self.switch_mode(chosen),
            Kind::LateStatement => self.execute_late(),
        }
    }

    /// Lets the writers take some steps.
    pub fn write(&mut self, most: usize) {
        let before = self.server.commits.len();
        self.server.run(&mut self.rng, most);
        if self.rng.u8(..4) == 0 {
            self.server.write(3);
        }
        self.note_commits(before);
    }

    pub fn note_commits(&mut self, before: usize) {
        self.judge.sync(&self.server);
        for index in before..self.server.commits.len() {
            let commit = &self.server.commits[index];
            if !commit.is_published {
                for event in &commit.events {
                    self.judge.miss(event.id);
                }
            }
            tell!(
                self,
                "committed at {}..{}{}: {:?}",
                commit.lsn,
                commit.end,
                if commit.is_published {
                    ""
                } else {
                    " (not in the publication)"
                },
                commit.events
            );
        }
    }

    /// A statement of ours was committed: everything before it is on disk.
    pub fn wrote(&mut self) {
        self.server.write(2);
        self.server.flush();
    }

    fn handle_request(&mut self) {
        for _ in 0..self.rng.usize(1..4) {
            let Some((producer, answer)) = self.broker.handle(&mut self.rng) else {
                return;
            };
            match answer {
                Answer::Appended(events) => {
                    for event in events {
                        tell!(self, "appended row {} of producer {producer}", event.id);
                        self.judge.appended(event, &self.server);
                    }
                }
                Answer::Refused(failed, row) => {
                    tell!(self, "refused {failed:?} of producer {producer}");
                    if let Some(row) = row {
                        self.excuse_dead(row);
                    }
                    let owner = self.broker.producers[&producer].owner;
                    self.broker.purge_refused(producer);
                    if let Some(owner) = owner {
                        self.fail_producer(owner, failed);
                    }
                }
            }
        }
    }

    /// A row at fault becomes a dead letter, and its aggregate may go on.
    pub fn excuse_dead(&mut self, id: u32) {
        if self.setting.policy == FaultPolicy::Continue {
            self.judge.excuse(id);
            for process in &mut self.relays {
                process.found.remove(&id);
            }
        }
    }

    fn report(&mut self, relay: usize, most: usize) {
        let Some(producer) = self.relays[relay].producer else {
            return;
        };
        let tickets = self.broker.report(producer, &mut self.rng, most);
        if !tickets.is_empty() {
            self.relays[relay].told.push_back(Told::Delivered(tickets));
        }
    }

    /// The producer ends; some of what was appended is still reported.
    fn fail_producer(&mut self, relay: usize, failed: Vec<(u64, crate::core::Fault)>) {
        let Some(producer) = self.relays[relay].producer.take() else {
            return;
        };
        tell!(self, "the producer of relay {relay} fails");
        let most = self.rng.usize(..8);
        let tickets = self.broker.report(producer, &mut self.rng, most);
        self.end_in_broker(producer);
        let told = &mut self.relays[relay].told;
        told.push_back(Told::Delivered(tickets));
        told.push_back(Told::Ended(SessionEnd {
            failed,
            reason: String::new(),
            batch_bytes_max: None,
            small_batches: Default::default(),
            cutting: None,
        }));
    }

    pub fn end_in_broker(&mut self, producer: u64) {
        for event in self.broker.end(producer, &mut self.rng) {
            self.judge.grant(event.id);
        }
    }

    /// What was in flight at a relay that is no longer the leader may be repeated.
    pub fn grant_in_flight(&mut self, relay: usize) {
        let process = &self.relays[relay];
        if process.core().is_empty() && process.session.is_none() {
            return;
        }
        let session = process.session.as_ref();
        let catches_up = session.is_some_and(|session| session.is_catch_up());
        self.grant_rows(relay, catches_up);
    }

    /// What is in flight or being replayed may be repeated.
    pub fn grant_rows(&mut self, relay: usize, catches_up: bool) {
        // A row that is being replayed is in flight, and recorded as held as well.
        let ids: Vec<u32> = self.relays[relay].core().ids_handed_over().collect();
        ids.into_iter().for_each(|id| self.judge.grant(id));
        if !self.setting.has_marks() {
            self.grant_without_marks(catches_up);
        }
        self.grant_replay(relay);
    }

    pub fn grant_without_marks(&mut self, catches_up: bool) {
        let from = match self.database.slot {
            Some(slot) if !catches_up && self.database.caught_up => slot.confirmed,
            _ => 0,
        };
        self.judge.grant_behind(from);
    }

    /// What is replayed comes again until that is recorded.
    pub fn grant_replay(&mut self, relay: usize) {
        let ids = self.relays[relay].replays();
        for kept in self
            .database
            .kept
            .iter()
            .filter(|kept| ids.contains(&kept.id))
        {
            if let Ok(id) = kept.row_id.parse() {
                self.judge.grant(id);
            }
        }
    }

    /// A slot begins where every transaction that was running has ended.
    pub fn create_slot(&mut self) {
        self.server.show_committed();
        self.server.flush();
        let at = self.server.flushed;
        tell!(self, "a slot is made at {at}");
        self.judge.slot_moved(at);
        self.database.slot = Some(Slot {
            confirmed: at,
            persisted: at,
            reader: None,
            is_foreign: false,
        });
    }

    /// What the brokers say of a topic.
    pub fn topic_states(&self, name: &Arc<str>) -> Vec<(Arc<str>, TopicState)> {
        let place = TopicPartition::parse(name);
        let topic = place.as_ref().map_or(name, |place| &place.topic);
        let index = usize::from(topic != super::event::topic(0));
        if self.broker.denied[index] {
            return vec![(name.clone(), TopicState::Denied)];
        }
        let count = self.broker.partitions[index];
        let available = TopicState::Available {
            partitions: count as usize,
        };
        if let Some(place) = place {
            let is_leaderless = self.broker.leaderless.contains(&(index, place.partition));
            let state = match is_leaderless {
                true => TopicState::Leaderless,
                false => available,
            };
            return vec![(name.clone(), state)];
        }
        let of_topic = self.broker.leaderless.iter();
        let of_topic = of_topic.filter(|(topic, _)| *topic == index);
        let leaderless = of_topic.map(|(_, partition)| {
            let place = TopicPartition::new(topic, *partition, count);
            (place.name().clone(), TopicState::Leaderless)
        });
        leaderless.chain([(name.clone(), available)]).collect()
    }

    /// Ends every fault and runs until nothing moves any more.
    fn heal(&mut self) {
        tell!(self, "the world is healed");
        self.rng = Rng::with_seed(self.server.wal);
        self.server.closed = true;
        self.server.is_published = true;
        self.broker.denied = [false; 2];
        self.broker.is_down = false;
        self.broker.leaderless.clear();
        self.late.clear();
        for process in &mut self.relays {
            process.is_frozen = false;
        }
        let before = self.server.commits.len();
        self.server.finish_seen(&mut self.rng);
        self.server.flush();
        self.note_commits(before);
        if !self.comes_to_rest(Self::all_seen_is_settled) {
            let rows = self.unsettled_seen();
            let text = format!("rows {rows:?} wait for commits that nobody sees");
            return self.judge.breaks("L2", text);
        }
        let before = self.server.commits.len();
        self.server.finish(&mut self.rng);
        self.server.flush();
        self.note_commits(before);
        if !self.comes_to_rest(Self::is_at_rest) {
            let rows = self.judge.unsettled(&self.database, &self.server);
            let text = format!(
                "rows {rows:?} never come, rows {:?} are never marked",
                self.unmarked()
            );
            return self.judge.breaks("L1", text);
        }
        for relay in 0..self.relays.len() {
            self.ask_to_stop(relay);
        }
        if !self.comes_to_rest(Self::is_at_rest) {
            self.judge
                .breaks("L1", "no rest after a restart".to_owned());
        }
    }

    fn unsettled_seen(&self) -> Vec<u32> {
        let seen: HashSet<u32> = self.server.rows.values().map(|event| event.id).collect();
        let mut rows = self.judge.unsettled(&self.database, &self.server);
        rows.retain(|id| seen.contains(id));
        rows
    }

    /// What waits is what nobody sees.
    fn all_seen_is_settled(&self) -> bool {
        self.unsettled_seen().is_empty()
    }

    /// Rows that stand unsent and should not.
    fn unmarked(&self) -> Vec<u32> {
        if !self.setting.marks_rows() {
            return Vec::new();
        }
        let is_kept = |event: &&super::event::Event| self.database.keeps(event.id, event.seq);
        let unsent = self.server.all_unsent().filter(|event| !is_kept(event));
        unsent.map(|event| event.id).collect()
    }

    /// Runs without faults; whether nothing is left to do in the end.
    fn comes_to_rest(&mut self, is_done: fn(&Self) -> bool) -> bool {
        for round in 0..ROUNDS_MAX {
            // The lease is renewed all the time.
            self.wrote();
            self.now += Duration::from_millis(if round % 16 == 0 { 5_000 } else { 40 });
            for relay in 0..self.relays.len() {
                self.work(relay, 6);
                self.handle_request();
                self.handle_request();
                self.report(relay, 12);
            }
            if self.judge.broken.is_some() || round % 8 == 7 && is_done(self) {
                return true;
            }
        }
        false
    }

    fn is_at_rest(&self) -> bool {
        self.relays.iter().all(Process::is_idle)
            && self
                .broker
                .producers
                .keys()
                .all(|id| !self.broker.is_busy(*id))
            && self.relays.iter().any(|process| process.session.is_some())
            && self
                .judge
                .unsettled(&self.database, &self.server)
                .is_empty()
            && self.unmarked().is_empty()
            && self.holds_are_legitimate()
    }

    /// What is held is held by a row that is at fault.
    fn holds_are_legitimate(&self) -> bool {
        self.database.blocked.iter().all(|entry| {
            let is_blocked = entry.state == BlockedState::Blocked;
            let row = entry.row_id.parse().unwrap_or(0);
            let event = self.judge.event(row);
            let is_at_fault = event.is_some_and(|event| event.flaw != Flaw::None);
            let is_aggregate = matches!(entry.what, What::Aggregate { .. });
            match is_blocked {
                true => is_aggregate && is_at_fault,
                false => entry.state == BlockedState::Released,
            }
        })
    }
}
