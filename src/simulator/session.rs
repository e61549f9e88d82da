//! Opening and ending the sessions of a relay.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::event::{Event, id_of};
use super::marking::{HoldWriter, Late, Marking};
use super::mutations::Mutation;
use super::polling::Turns;
use super::schedule::Mode;
use super::stream::Walsender;
use super::unsent::Pages;
use super::world::{World, tell};
use crate::config::{CatchUpFrom, Mark};
use crate::core::Delivered;
use crate::core::Ticket;
use crate::encode::Rejection;
use crate::mark::FencingToken;
use crate::mark::evidence::Record;
use crate::mark::ledger::Ledger;
use crate::relay::Phase;
use crate::relay::machine::batch_cursor::BatchCursor;
use crate::relay::machine::paid::Paid;
use crate::relay::machine::read_before::ReadBefore;
use crate::relay::session::CatchUp;
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, OutboxRow};
use crate::source::Batch;
use crate::source::holes::{Holes, RollbackProof};
use crate::source::polling::CaughtUp;
use crate::state::hold::RowsAhead;
use crate::state::hold::{ReplayOrder, Replayed, merge};

/// Rows that one session replays.
const REPLAY_ROWS: usize = 3;
/// Rows of the table that one session hands out ahead of them.
const ROWS_AHEAD: usize = 2;

/// Who hands out rows.
pub enum Source {
    Stream(Walsender),
    Numbers(Turns),
    Pages(Pages),
    Given,
}

/// What broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Connection,
    Server,
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Stopped,
    Lost,
    Producer,
    Deposed,
    Reread,
    CaughtUp,
    Replayed(Vec<i64>),
}

/// One session of one relay.
pub struct Session {
    pub token: FencingToken,
    pub connection: u64,
    pub phase: Phase,
    pub mark: Mark,
    pub ledger: Option<Ledger>,
    /// Marks in rows: what was marked beside the stream.
    pub record: Option<Record>,
    /// Up to here a streamed row may have been marked before.
    pub replayed_below: Lsn,
    /// Rows that were acknowledged and whose mark is to be tried again.
    pub owing: Vec<Delivered>,
    /// Those of them that are marked by now.
    pub paid: Paid,
    /// Held rows that come again with every page.
    pub held: HashSet<u32>,
    /// Rows that stood unsent, and the position behind them.
    pub candidates: Option<(Vec<Event>, Lsn)>,
    pub source: Source,
    pub batches: VecDeque<Batch>,
    pub cursor: BatchCursor<Result<Arc<str>, Rejection>>,
    /// Rows that were put aside and are not recorded.
    pub rows: HashMap<Ticket, OutboxRow>,
    pub marking: Option<Marking>,
    pub hold_writer: Option<HoldWriter>,
    pub holes: Holes,
    pub highest: i64,
    pub top: i64,
    pub confirm: u64,
    /// What an earlier session found that could be confirmed.
    pub confirmed_before: u64,
    pub is_draining: bool,
    /// The drain ended with something in flight.
    pub is_out_of_grace: bool,
    pub lost: Option<Loss>,
    /// Dead numbers that no checkpoint covers.
    pub rolled_back: RangeSet,
    /// Missed rows that are published while the stream goes on.
    pub swept: VecDeque<OutboxRow>,
}

impl Session {
    pub fn has_statement(&self) -> bool {
        self.marking.is_some() || self.hold_writer.is_some()
    }

    /// Rows that were acknowledged and whose mark was tried, also while it is tried again.
    pub fn owed(&self) -> impl Iterator<Item = &Delivered> {
        let again = self.marking.iter().filter(|marking| marking.is_again);
        self.owing
            .iter()
            .chain(again.flat_map(|marking| &marking.rows))
    }

    pub fn is_stream(&self) -> bool {
        matches!(self.source, Source::Stream(_))
    }

    /// Whether rows went out of a transaction that is not read to its end, and nothing marks them.
    pub fn is_within_transaction(&self) -> bool {
        self.mark == Mark::None && self.is_stream() && self.cursor.is_within_transaction()
    }

    /// Whether rows go out: all of them, or in a drain the rest of a transaction.
    pub fn feeds(&self) -> bool {
        !self.is_draining || self.is_within_transaction()
    }

    pub fn is_catch_up(&self) -> bool {
        self.phase == Phase::CatchUp
    }

    pub fn is_steady(&self) -> bool {
        self.phase == Phase::Steady && self.cursor.is_empty() && !self.has_statement()
    }

    pub fn is_replay(&self) -> bool {
        matches!(self.phase, Phase::Replay(_))
    }

    pub fn replays(&self) -> &[i64] {
        match &self.phase {
            Phase::Replay(copies) => copies.entries(),
            _ => &[],
        }
    }

    /// The server is gone, and with it what it was asked.
    pub fn forget_statements(&mut self) {
        if let Some(marking) = &mut self.marking {
            marking.is_answered = true;
        }
        if let Some(keeping) = &mut self.hold_writer {
            keeping.is_answered = true;
        }
    }
}

impl World {
    /// Opens a session if the lease is ours; it may fail half-way, and is tried again.
    pub fn attempt(&mut self, relay: usize) {
        let process = &self.relays[relay];
        let Some(epoch) = process.keeper.epoch() else {
            if process.epoch.is_some() {
                self.relays[relay].epoch = None;
                self.depose(relay);
            }
            // Settles what Kafka acknowledges between sessions.
            self.rest(relay);
            return;
        };
        if !process.keeper.publishes(self.now) {
            return;
        }
        self.rest(relay);
        if self.relays[relay].epoch.replace(epoch) != Some(epoch) {
            self.depose(relay);
            self.grant_replay(relay);
            let process = &mut self.relays[relay];
            process.catch_up = CatchUp::AsRecorded;
            process.undecodable = None;
            process.replayed.clear();
            process.replaying = Replayed::default();
            for other in (0..self.relays.len()).filter(|other| *other != relay) {
                self.grant_in_flight(other);
                self.grant_replay(other);
            }
        }
        let token = FencingToken {
            outbox: "public.outbox".to_owned(),
            epoch,
        };
        if !self.database.holds_lease(&token) {
            return;
        }
        self.open(relay, token);
    }

    fn rest(&mut self, relay: usize) {
        while let Some(told) = self.relays[relay].told.pop_front() {
            match told {
                super::relay::Told::Delivered(tickets) => self.delivered(relay, &tickets),
                super::relay::Told::Ended(end) => self.relays[relay].core.producer_ended(&end),
                super::relay::Told::Asked(topic) => {
                    let state = self.topic_state(&topic);
                    let core = &mut self.relays[relay].core;
                    if !core.held().is_available(&topic) {
                        core.topic(&topic, &state);
                    }
                }
            }
        }
    }

    fn open(&mut self, relay: usize, token: FencingToken) {
        self.record_carry_over(relay);
        self.leave_to_the_table(relay);
        if self.relays[relay].mode == Mode::Stream && !self.prepare_slot() {
            return;
        }
        let held = self.relays[relay].core.held();
        let mut topics: Vec<String> = held.to_release().map(ToString::to_string).collect();
        topics.sort_unstable();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let has_marks = self.setting.has_marks();
        self.mark_skipped();
        if self.database.release(&topics, has_marks, &self.server) {
            tell!(
                self,
                "relay {relay} releases what was asked for, and {topics:?}"
            );
            self.wrote();
        }
        self.database.take_out_sent();
        if self.rng.u8(..20) == 0 {
            return;
        }
        let mut recorded = self.database.recorded();
        let skipped = recorded.numbers.clone();
        let put_aside = skipped.clone();
        let ledger = (self.setting.mark == Mark::Ledger).then(|| {
            let first = self.setting.first;
            self.database.load_ledger(token.clone(), first, skipped)
        });
        if self.mutation == Mutation::ForgetTheHold {
            recorded.aggregates.clear();
        }
        self.connections += 1;
        let connection = self.connections;
        let Some((source, phase, given)) =
            self.source(relay, connection, ledger.as_ref(), &put_aside)
        else {
            return;
        };
        tell!(
            self,
            "relay {relay} opens a session, epoch {}: {phase:?}",
            token.epoch
        );
        let (record, owing) = self.database.marks.load();
        let is_recorded = self.setting.marks_rows() && self.relays[relay].mode == Mode::Stream;
        let record = is_recorded.then_some(record);
        let process = &mut self.relays[relay];
        process.left_in_order = false;
        if phase == Phase::CatchUp {
            process.read_before = ReadBefore::default();
        }
        process.core.restore(recorded);
        if process.producer.is_none() {
            process.producer = Some(self.broker.start(relay));
        }
        process.session = Some(Session {
            token,
            connection,
            phase,
            mark: self.setting.mark,
            ledger,
            record,
            owing,
            paid: Paid::default(),
            replayed_below: Lsn(self.server.wal),
            held: HashSet::new(),
            candidates: None,
            source,
            batches: given.into_iter().collect(),
            cursor: BatchCursor::default(),
            rows: HashMap::new(),
            marking: None,
            hold_writer: None,
            holes: Holes::new(RollbackProof::NeedsStream),
            highest: self.setting.first - 1,
            top: 0,
            confirm: 0,
            confirmed_before: process.core.confirmable().map_or(0, |lsn| lsn.0),
            is_draining: process.is_stopping,
            is_out_of_grace: false,
            lost: None,
            rolled_back: RangeSet::new(),
            swept: VecDeque::new(),
        });
    }

    fn source(
        &mut self,
        relay: usize,
        connection: u64,
        ledger: Option<&Ledger>,
        put_aside: &RangeSet,
    ) -> Option<(Source, Phase, Option<Batch>)> {
        let settled = match self.setting.mark {
            Mark::None => None,
            _ => Some(ledger.map_or_else(|| put_aside.clone(), Ledger::settled)),
        };
        let order = match settled {
            Some(_) => ReplayOrder::ByNumber,
            None => ReplayOrder::AsKept,
        };
        let wal = self.server.wal;
        let replay = self.database.to_replay(REPLAY_ROWS, wal, order);
        if !replay.is_empty() {
            let ahead = match settled {
                Some(settled) if self.mutation != Mutation::ReplayPassesTheTable => {
                    self.rows_ahead(&replay, &settled)?
                }
                _ => RowsAhead::default(),
            };
            let (copies, rows) = merge(replay, ahead);
            let batch = Batch {
                rows,
                caught_up: true,
                ..Batch::default()
            };
            self.relays[relay].replaying.begin(&copies);
            return Some((Source::Given, Phase::Replay(copies), Some(batch)));
        }
        let is_stream = self.relays[relay].mode == Mode::Stream;
        if is_stream && self.database.caught_up && !self.is_far_behind() {
            if self.database.slot?.reader.is_some() {
                return None;
            }
            self.pass(relay);
            let slot = self.database.slot.as_mut()?;
            slot.reader = Some(connection);
            let walsender = Walsender::new(slot.confirmed, &self.server);
            return Some((Source::Stream(walsender), Phase::Steady, None));
        }
        self.database.caught_up = false;
        self.wrote();
        let phase = match is_stream {
            true => Phase::CatchUp,
            false => Phase::Steady,
        };
        if self.setting.marks_rows() {
            let waits = self.relays[relay].undecodable.is_some();
            return Some((Source::Pages(Pages::new(waits)), phase, None));
        }
        let says = match is_stream && self.setting.catch_up == CatchUpFrom::Table {
            true => CaughtUp::WithPositions,
            false => CaughtUp::WithTheTable,
        };
        let turns = match (self.mutation, self.relays[relay].learned.take()) {
            (Mutation::NumbersOutliveCrash, Some(learned)) => learned,
            _ => Turns::new(self.setting.first, ledger, says),
        };
        Some((Source::Numbers(turns), phase, None))
    }

    /// Whether the session of a relay reads the table in the place of its slot.
    pub fn moves_slot(&self, relay: usize) -> bool {
        let session = self.relays[relay].session.as_ref();
        let is_catch_up = session.is_some_and(Session::is_catch_up);
        is_catch_up && self.setting.catch_up == CatchUpFrom::Table
    }

    /// `read_ahead`; nothing where the server was lost meanwhile.
    fn rows_ahead(&mut self, copies: &[(i64, OutboxRow)], settled: &RangeSet) -> Option<RowsAhead> {
        let newest = copies.iter().filter_map(|(_, copy)| copy.seq).max()?;
        let aggregate_of = |id| self.judge.event(id).map(|event| event.aggregate);
        let of_copies = copies
            .iter()
            .map(|(_, copy)| (aggregate_of(id_of(copy)), copy.seq));
        let of_copies: Vec<_> = of_copies.collect();
        let standing = self.server.rows.range(..=newest);
        let is_ahead = |(seq, event): &(&i64, &Event)| {
            !settled.contains(**seq)
                && self.server.unsent(**seq, event.id).is_some()
                && of_copies.iter().any(|(aggregate, copy)| {
                    *aggregate == Some(event.aggregate) && Some(**seq) < *copy
                })
        };
        let lsn = self.server.wal;
        let rows = standing.filter(is_ahead).map(|(_, event)| event.row(lsn));
        let rows: Vec<_> = rows.take(ROWS_AHEAD).collect();
        if !rows.is_empty() && !self.pass_gate(lsn) {
            return None;
        }
        let is_cut = rows.len() == ROWS_AHEAD;
        Some(RowsAhead { rows, is_cut })
    }

    /// Ends a session, and draws the consequences that outlive it.
    pub fn end_session(&mut self, relay: usize, end: End) {
        tell!(self, "the session of relay {relay} ends: {end:?}");
        self.finish_statements(relay);
        self.leave_source(relay, &end);
        let session = self.relays[relay].session.as_ref();
        let is_out_of_grace = session.is_some_and(|session| session.is_out_of_grace);
        let is_told = session.is_some_and(|s| s.is_stream() && s.lost.is_none());
        if is_out_of_grace {
            self.grant_in_flight(relay);
            self.grant_replay(relay);
        }
        self.relays[relay].left_in_order = end == End::Stopped && !is_out_of_grace;
        let is_in_order = end == End::Stopped && is_told && !is_out_of_grace;
        if !self.setting.has_marks() && !is_in_order {
            self.grant_without_marks(relay);
            self.grant_replay(relay);
        }
        let Some(session) = self.relays[relay].session.take() else {
            return;
        };
        self.relays[relay].left_replaying = session.replays().to_vec();
        if let (Mutation::NumbersOutliveCrash, Source::Numbers(turns)) =
            (self.mutation, session.source)
            && session.lost == Some(Loss::Server)
        {
            self.relays[relay].learned = Some(turns);
        }
        let process = &mut self.relays[relay];
        process.replayed.extend(process.replaying.take_marked());
        match end {
            End::Deposed => {
                self.depose(relay);
                return;
            }
            End::CaughtUp => self.relays[relay].catch_up = CatchUp::Done,
            End::Replayed(ids) => self.relays[relay].replayed.extend(ids),
            End::Reread if self.setting.has_marks() => {
                self.relays[relay].catch_up = CatchUp::Demanded;
            }
            _ => {}
        }
        self.relays[relay].core.source_ended();
    }

    /// The last confirmation, which an end in order brings to the server.
    fn leave_source(&mut self, relay: usize, end: &End) {
        self.relays[relay].advance_confirm();
        let Some(session) = &self.relays[relay].session else {
            return;
        };
        let connection = session.connection;
        let is_ordered = session.lost.is_none() && *end != End::Deposed;
        if is_ordered && session.is_stream() {
            self.confirm(relay);
        }
        if let Some(slot) = &mut self.database.slot
            && slot.reader == Some(connection)
        {
            slot.reader = None;
        }
    }

    /// The connection is gone; what it asked for may take effect all the same.
    pub fn abandon_statements(&mut self, relay: usize) {
        let Some(session) = &mut self.relays[relay].session else {
            return;
        };
        if let Some(marking) = &mut session.marking
            && !marking.is_answered
        {
            marking.is_answered = true;
            self.late.push(Late(marking.work.late()));
        }
        if let Some(keeping) = &mut session.hold_writer {
            keeping.is_answered = true;
        }
    }
}
