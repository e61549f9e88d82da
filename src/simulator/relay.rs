//! One relay process of the simulation: what outlives its sessions, and what it does when it is scheduled.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::lease::{Contender, Part, Statement, execute};
use super::mutations::Mutation;
use super::polling::Turns;
use super::schedule::{Mode, Setting};
use super::seam::delivered;
use super::session::Session;
use super::world::{World, tell};
use crate::core::{Core, Faults, ReleaseOn, SessionEnd, Ticket, Window};
use crate::observe::metrics::Metrics;
use crate::publish::Deliveries;
use crate::relay::machine::{Effect, Input, Memory, Partitioner};
use crate::relay::session::CarryOver;
use crate::source::SourceError;
use crate::state::lease::Standby;

/// How long a relay that is asked to stop may take.
const GRACE: Duration = Duration::from_secs(20);

/// Counts for all worlds together; nobody looks.
static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(|| Arc::new(Metrics::new()));

/// What a producer tells its relay.
pub enum Told {
    Delivered(Vec<Ticket>),
    Ended(SessionEnd),
    /// A topic was asked for.
    Asked(Arc<str>),
}

/// One process.
pub struct Process {
    pub keeper: Contender,
    /// With the session's machine while there is one.
    pub memory: Option<Memory>,
    pub producer: Option<u64>,
    /// A producer that waits to take over.
    pub successor: Option<u64>,
    /// The producer has read old secrets.
    pub is_outdated: bool,
    pub told: VecDeque<Told>,
    pub session: Option<Session>,
    pub epoch: Option<i64>,
    pub carry_over: CarryOver,
    /// What the last session was replaying when it ended.
    pub left_replaying: Vec<i64>,
    /// The last session ended with nothing in flight but what is recorded as owed.
    pub left_in_order: bool,
    /// What a look has just called missed.
    pub called_missed: Vec<u32>,
    /// Rows that were found missed, by their ids.
    pub found: HashSet<u32>,
    pub mode: Mode,
    /// What its configuration says by now.
    pub next_mode: Mode,
    pub is_frozen: bool,
    pub is_stopping: bool,
    /// What a connection taught, where that outlives it.
    pub learned: Option<Turns>,
}

impl Process {
    pub fn new(number: usize, ttl: Duration, setting: &Setting) -> Self {
        Self {
            keeper: Contender::new(number as u64 + 1, ttl),
            memory: Some(Memory::new(
                core(setting),
                Partitioner::Murmur2,
                METRICS.clone(),
            )),
            producer: None,
            successor: None,
            is_outdated: false,
            told: VecDeque::new(),
            session: None,
            epoch: None,
            carry_over: CarryOver::nothing(),
            left_replaying: Vec::new(),
            left_in_order: false,
            called_missed: Vec::new(),
            found: HashSet::new(),
            mode: setting.mode,
            next_mode: setting.mode,
            is_frozen: false,
            is_stopping: false,
            learned: None,
        }
    }

    /// The process is gone and another one begins in its place.
    pub fn start_again(&mut self, setting: &Setting) {
        let mut keeper = Contender::new(0, self.keeper.ttl);
        keeper.incarnation = self.keeper.incarnation + 1;
        keeper.connection = self.keeper.connection + 1;
        let mode = self.next_mode;
        *self = Self::new(0, keeper.ttl, setting);
        (self.keeper, self.mode, self.next_mode) = (keeper, mode, mode);
    }

    /// What is remembered, whether a session runs or not.
    pub fn memory(&self) -> &Memory {
        match &self.session {
            Some(session) => session.machine.memory(),
            None => self.memory.as_ref().expect("a session gives it back"),
        }
    }

    pub fn core(&self) -> &Core {
        &self.memory().core
    }

    /// What is remembered between two sessions.
    pub fn memory_mut(&mut self) -> &mut Memory {
        self.memory.as_mut().expect("a session gives it back")
    }

    /// The entries that are being replayed, or were and that is not recorded.
    pub fn replays(&self) -> Vec<i64> {
        let mut ids = self.carry_over.replayed.clone();
        match &self.session {
            Some(session) => ids.extend(session.replays()),
            None => ids.extend(&self.left_replaying),
        }
        ids
    }

    pub fn is_idle(&self) -> bool {
        !self.is_stopping
            && self.core().is_settled()
            && self.told.is_empty()
            && self.session.as_ref().is_none_or(Session::is_steady)
    }
}

fn core(setting: &Setting) -> Core {
    let window = Window {
        rows_max: setting.window_rows,
        bytes_max: 10_000,
    };
    let settling = match setting.has_marks() {
        true => ReleaseOn::OnMark,
        false => ReleaseOn::OnConfirmation,
    };
    let faults = Faults {
        policy: setting.policy,
        halt_share: 0.5,
    };
    Core::new(window, settling, faults)
}

impl World {
    /// Lets a relay do a few things.
    pub fn work(&mut self, relay: usize, most: usize) {
        for _ in 0..self.rng.usize(1..=most) {
            if self.relays[relay].is_frozen {
                return;
            }
            if self.rng.u8(..4) > 0 {
                let process = &mut self.relays[relay];
                process
                    .keeper
                    .turn(&mut self.database.lease, self.now, &self.dead);
            }
            match &self.relays[relay].session {
                Some(_) => self.act(relay),
                None if self.relays[relay].is_stopping => self.stop(relay),
                None => self.attempt(relay),
            }
        }
    }

    /// One thing that the loop of a session wakes up for.
    fn act(&mut self, relay: usize) {
        if self.relays[relay].is_stopping {
            self.ask_session_to_stop(relay);
        }
        match self.rng.u8(..22) {
            0..=4 => self.read_source(relay),
            5..=9 => self.take_batch(relay),
            10..=12 => self.take_told(relay),
            13..=15 => self.advance_mark(relay),
            16 | 17 => self.advance_record(relay),
            18 => self.deliver_status(relay),
            19 => self.look(relay),
            20 => self.give(relay, Input::MaintenanceDue),
            _ => self.tick(relay),
        }
        self.notice_loss(relay);
        self.wake(relay);
    }

    fn ask_session_to_stop(&mut self, relay: usize) {
        let until = self.now + GRACE;
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        if session.stop_until.is_none() {
            session.stop_until = Some(until);
            self.give(relay, Input::StopAsked { until });
        }
    }

    /// A connection that ended is noticed sooner or later.
    fn notice_loss(&mut self, relay: usize) {
        let session = self.relays[relay].session.as_ref();
        if session.is_some_and(|session| session.lost.is_some()) && self.rng.bool() {
            self.give(relay, Input::SourceEnded(SourceError::Ended));
        }
    }

    /// What is due is done, and the lease is looked at.
    fn wake(&mut self, relay: usize) {
        let process = &self.relays[relay];
        let Some(session) = &process.session else {
            return;
        };
        let is_due = session.machine.wakes_at().is_some_and(|at| at <= self.now);
        let is_deposed = process.keeper.epoch() != Some(session.token.epoch);
        if is_due || is_deposed {
            self.give(relay, Input::TimePassed);
        }
    }

    fn tick(&mut self, relay: usize) {
        if self.rng.bool() {
            return self.give(relay, Input::TopicsDue);
        }
        self.give(relay, Input::SecondPassed(self.wall_clock()));
        let process = &self.relays[relay];
        let session = process.session.as_ref();
        let has_successor = session.is_some_and(|session| session.machine.has_successor());
        if process.is_outdated && !has_successor {
            self.give(relay, Input::ProducerOutdated("the secrets have changed"));
        }
    }

    fn take_told(&mut self, relay: usize) {
        let Some(told) = self.relays[relay].told.pop_front() else {
            return;
        };
        match told {
            Told::Delivered(tickets) => {
                tell!(self, "relay {relay} takes the reports of {tickets:?}");
                self.give(relay, delivered(tickets));
            }
            Told::Ended(end) => self.give(relay, Input::ProducerEnded(Some(end))),
            Told::Asked(topic) => {
                if self.broker.is_down {
                    self.relays[relay].told.push_back(Told::Asked(topic));
                    return;
                }
                let answers = self.topic_states(&topic);
                tell!(self, "relay {relay} hears {answers:?}");
                self.give(relay, Input::TopicsAnswered(answers));
            }
        }
    }

    /// Ends a process in order, and begins another one.
    ///
    /// What is in flight is marked in one more session, unless the grace period is over.
    fn stop(&mut self, relay: usize) {
        let process = &self.relays[relay];
        let is_in_flight = process.memory().owes_marks() && !process.left_in_order;
        let is_owed = is_in_flight || !process.carry_over.replayed.is_empty();
        let is_in_time = self.rng.u8(..60) > 0;
        let settles = self.mutation != Mutation::StopUnsettled;
        if self.setting.has_marks() && is_owed && is_in_time && settles {
            return self.attempt(relay);
        }
        tell!(self, "relay {relay} has stopped");
        let process = &self.relays[relay];
        let is_late = is_owed && !is_in_time;
        if is_late || !self.setting.has_marks() && !process.left_in_order {
            self.grant_in_flight(relay);
            self.grant_replay(relay);
        }
        self.end_producer(relay);
        let now = self.now;
        let process = &mut self.relays[relay];
        if let Part::Holder(_) = process.keeper.part {
            process.keeper.part = Part::Standby(Standby::default());
            process.keeper.ask(Statement::Release, now);
            if let Some(asked) = &mut process.keeper.asked {
                execute(&mut self.database.lease, asked);
            }
        }
        self.relays[relay].start_again(&self.setting);
    }

    /// Ends the producer at once and settles what it still reports.
    pub fn end_producer(&mut self, relay: usize) {
        let most = self.rng.usize(..12);
        let Some(reports) = self.last_reports(relay, most) else {
            return;
        };
        let memory = self.relays[relay].memory_mut();
        reports
            .iter()
            .for_each(|reports| memory.acknowledged(reports));
        memory.producer_ended(&nothing_failed(), &mut Vec::new());
    }

    /// Ends the producer; what it still reports, and what it has reported.
    pub fn last_reports(&mut self, relay: usize, most: usize) -> Option<Vec<Deliveries>> {
        let producer = self.relays[relay].producer.take();
        // One that has ended by itself has said more than was heard.
        let mut told = self.relays[relay].told.iter();
        if producer.is_none() && !told.any(|told| matches!(told, Told::Ended(_))) {
            return None;
        }
        self.relays[relay].is_outdated = false;
        let last = producer.map(|producer| self.broker.report(producer, &mut self.rng, most));
        let told = self.relays[relay].told.drain(..);
        let tickets = told.filter_map(|told| match told {
            Told::Delivered(tickets) => Some(tickets),
            Told::Ended(_) | Told::Asked(_) => None,
        });
        let tickets = tickets.chain(last);
        let reports = tickets.map(|tickets| Deliveries { tickets, bytes: 0 });
        let reports = reports.collect();
        if let Some(producer) = producer {
            self.end_in_broker(producer);
        }
        Some(reports)
    }

    /// Settles what Kafka says between two sessions.
    pub fn rest(&mut self, relay: usize) {
        while let Some(told) = self.relays[relay].told.pop_front() {
            let now = self.now;
            let answers = match &told {
                Told::Asked(topic) => self.topic_states(topic),
                Told::Delivered(_) | Told::Ended(_) => Vec::new(),
            };
            let memory = self.relays[relay].memory_mut();
            let mut effects: Vec<Effect> = Vec::new();
            match told {
                Told::Delivered(tickets) => memory.acknowledged(&Deliveries { tickets, bytes: 0 }),
                Told::Ended(end) => drop(memory.producer_ended(&end, &mut effects)),
                Told::Asked(_) => {
                    if memory.take_topics(&answers, now, &mut effects) {
                        memory.give_up_leaderless();
                        self.end_producer(relay);
                    }
                }
            }
        }
    }

    /// Drops everything in flight: another relay publishes from now on.
    pub fn depose(&mut self, relay: usize) {
        self.grant_in_flight(relay);
        self.end_producer(relay);
        let process = &mut self.relays[relay];
        process.memory_mut().forget_all();
        process.found.clear();
    }
}

/// The end of a producer that was asked to end.
pub fn nothing_failed() -> SessionEnd {
    SessionEnd {
        failed: Vec::new(),
        reason: String::new(),
        batch_bytes_max: None,
        small_batches: Default::default(),
        cutting: None,
    }
}
