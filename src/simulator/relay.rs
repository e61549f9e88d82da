//! One relay process of the simulation: what outlives its sessions, and what it does when it is scheduled.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::event::topic;
use super::lease::{Contender, Part, Statement, execute};
use super::mutations::Mutation;
use super::polling::Turns;
use super::schedule::{Mode, Setting};
use super::session::{End, Session};
use super::world::{World, tell};
use crate::core::{Core, Delivered, Faults, ReleaseOn, Window};
use crate::core::{SessionEnd, Ticket};
use crate::relay::machine::read_before::ReadBefore;
use crate::relay::session::CatchUp;
use crate::row::ranges::RangeSet;
use crate::state::hold::Replayed;
use crate::state::lease::Standby;
use std::sync::Arc;

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
    pub core: Core,
    pub producer: Option<u64>,
    pub told: VecDeque<Told>,
    pub session: Option<Session>,
    pub epoch: Option<i64>,
    pub catch_up: CatchUp,
    pub replayed: Vec<i64>,
    pub replaying: Replayed,
    /// What the last session was replaying when it ended.
    pub left_replaying: Vec<i64>,
    pub read_before: ReadBefore,
    /// Once the table was read, the slot moves behind this position: what it holds before was polled.
    pub undecodable: Option<u64>,
    /// The last session ended with nothing in flight but what is recorded as owed.
    pub left_in_order: bool,
    /// Rows for which the table was read again.
    pub reread: RangeSet,
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
            core: core(setting),
            producer: None,
            told: VecDeque::new(),
            session: None,
            epoch: None,
            catch_up: CatchUp::AsRecorded,
            replayed: Vec::new(),
            replaying: Replayed::default(),
            left_replaying: Vec::new(),
            read_before: ReadBefore::default(),
            undecodable: None,
            left_in_order: false,
            reread: RangeSet::new(),
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

    /// The relay has heard that rows are marked; of copies it remembers it beyond the session.
    pub fn marked(&mut self, rows: &[Delivered]) {
        self.core.marked(rows);
        self.replaying.marked(rows);
    }

    /// The entries that are being replayed, or were and that is not recorded.
    pub fn replays(&self) -> Vec<i64> {
        let mut ids = self.replayed.clone();
        match &self.session {
            Some(session) => ids.extend(session.replays()),
            None => ids.extend(&self.left_replaying),
        }
        ids
    }

    /// Takes what may be confirmed into what is confirmed next.
    pub fn advance_confirm(&mut self) {
        if let (Some(session), Some(lsn)) = (&mut self.session, self.core.confirmable()) {
            session.confirm = session.confirm.max(lsn.0);
        }
    }

    pub fn is_idle(&self) -> bool {
        !self.is_stopping
            && self.core.is_settled()
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

    /// One thing that the loop of a session wakes up for, then its turn.
    fn act(&mut self, relay: usize) {
        let end = match self.rng.u8(..22) {
            0..=4 => self.read_source(relay),
            5..=9 => self.take_batch(relay),
            10..=12 => self.take_told(relay),
            13..=15 => self.advance_mark(relay),
            16 | 17 => self.advance_keep(relay),
            18 => self.deliver_status(relay),
            19 if self.setting.marks_rows() => self.look_for_unmarked(relay),
            19 => self.look_for_missed(relay),
            20 => self.maintain(relay),
            _ => self.ask_around(relay),
        };
        let end = end
            .or_else(|| self.lost(relay))
            .or_else(|| self.turn(relay));
        if let Some(end) = end {
            self.end_session(relay, end);
        }
    }

    /// Does what can be done without waiting.
    fn turn(&mut self, relay: usize) -> Option<End> {
        let now = self.now;
        let process = &self.relays[relay];
        let session = process.session.as_ref()?;
        if process.keeper.epoch() != Some(session.token.epoch) {
            return Some(End::Deposed);
        }
        if process.keeper.publishes(now) {
            self.feed_answered(relay);
            if self.relays[relay].session.as_ref()?.feeds()
                && let Some(end) = self.feed_rows(relay)
            {
                return Some(end);
            }
        }
        self.settle(relay)
    }

    fn settle(&mut self, relay: usize) -> Option<End> {
        self.start_mark(relay);
        self.start_keep(relay);
        self.relays[relay].advance_confirm();
        let process = &mut self.relays[relay];
        let session = process.session.as_mut()?;
        session.is_draining |= process.is_stopping;
        let core = &process.core;
        let marks = &self.database.marks;
        let is_remembered = |row: &Delivered| row.seq.is_some_and(|seq| marks.owes(seq));
        // Rows of the transaction are still to be read, or have gone out behind one that asks for its topic.
        let is_whole = self.mutation == Mutation::StopWithinTransaction
            || !session.is_within_transaction() && (core.asking() == 0 || self.setting.has_marks());
        let is_settled = is_whole
            && !session.has_statement()
            && core.sent() == 0
            && core.unmarked() == 0
            && core.aside() == 0
            && session.owing.iter().all(is_remembered);
        if !session.is_draining {
            return None;
        }
        session.is_out_of_grace = !is_settled && self.rng.u8(..60) == 0;
        (is_settled || session.is_out_of_grace).then_some(End::Stopped)
    }

    /// A connection that ended is noticed sooner or later.
    fn lost(&mut self, relay: usize) -> Option<End> {
        let is_lost = self.relays[relay].session.as_ref()?.lost.is_some();
        (is_lost && self.rng.bool()).then_some(End::Lost)
    }

    fn take_told(&mut self, relay: usize) -> Option<End> {
        let told = self.relays[relay].told.pop_front()?;
        match told {
            Told::Delivered(tickets) => {
                tell!(self, "relay {relay} takes the reports of {tickets:?}");
                self.delivered(relay, &tickets);
                None
            }
            Told::Ended(end) => {
                self.relays[relay].core.producer_ended(&end);
                Some(End::Producer)
            }
            Told::Asked(topic) => {
                if self.broker.is_down {
                    self.relays[relay].told.push_back(Told::Asked(topic));
                    return None;
                }
                let state = self.topic_state(&topic);
                tell!(self, "relay {relay} hears that {topic} is {state:?}");
                let core = &mut self.relays[relay].core;
                // That a topic can't be seen for a moment is the producer's to wait for.
                let is_due = !core.held().is_available(&topic) && core.topic(&topic, &state);
                is_due.then_some(End::Reread)
            }
        }
    }

    pub fn delivered(&mut self, relay: usize, tickets: &[Ticket]) {
        let core = &mut self.relays[relay].core;
        match (self.mutation, tickets.iter().max()) {
            (Mutation::SettleOutOfOrder, Some(last)) => {
                core.delivered(&(0..=*last).collect::<Vec<_>>());
            }
            _ => {
                core.delivered(tickets);
            }
        }
    }

    /// Asks for held topics, and whether somebody asked for a release or a replay.
    fn ask_around(&mut self, relay: usize) -> Option<End> {
        let process = &mut self.relays[relay];
        for index in [0, 2] {
            if process.core.held().topic_hold(topic(index)).is_some() && process.told.len() < 8 {
                process.told.push_back(Told::Asked(topic(index).clone()));
            }
        }
        let is_due = process.core.pass_turn_of_topics();
        let is_replay = process.session.as_ref()?.is_replay();
        let is_asked = !is_replay && self.database.is_asked_for();
        (is_asked || is_due).then_some(End::Reread)
    }

    /// Ends a process in order, and begins another one.
    ///
    /// What is in flight is marked in one more session, unless the grace period is over.
    fn stop(&mut self, relay: usize) {
        let process = &self.relays[relay];
        let is_in_flight = process.core.sent() + process.core.unmarked() > 0;
        let is_owed = is_in_flight && !process.left_in_order || !process.replayed.is_empty();
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
        let Some(producer) = self.relays[relay].producer.take() else {
            return;
        };
        let most = self.rng.usize(..12);
        let tickets = self.broker.report(producer, &mut self.rng, most);
        while let Some(told) = self.relays[relay].told.pop_front() {
            if let Told::Delivered(tickets) = told {
                self.delivered(relay, &tickets);
            }
        }
        self.delivered(relay, &tickets);
        self.end_in_broker(producer);
        let end = SessionEnd {
            failed: Vec::new(),
            reason: String::new(),
            batch_bytes_max: None,
            small_batches: Default::default(),
            cutting: None,
        };
        self.relays[relay].core.producer_ended(&end);
    }

    /// Drops everything in flight: another relay publishes from now on.
    pub fn depose(&mut self, relay: usize) {
        self.grant_in_flight(relay);
        self.end_producer(relay);
        let process = &mut self.relays[relay];
        process.core.forget_all();
        process.read_before = ReadBefore::default();
        process.reread = RangeSet::new();
        process.found.clear();
    }
}
