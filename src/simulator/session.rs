//! One session of a relay, and how it is opened.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::event::{Event, TABLE, id_of, layout};
use super::marking::{Marking, Recording};
use super::mutations::Mutation;
use super::polling::Turns;
use super::schedule::Mode;
use super::stream::Walsender;
use super::unsent::Pages;
use super::world::{World, tell};
use crate::config::{self, CatchUpFrom, Mark};
use crate::core::Delivered;
use crate::mark::ledger::Ledger;
use crate::mark::{FencingToken, Marks};
use crate::relay::Phase;
use crate::relay::machine::{Found, Input, Looks, Machine, Terms};
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, OutboxRow};
use crate::source::holes::{Holes, RollbackProof};
use crate::source::polling::CaughtUp;
use crate::source::replication::sweep::Progress;
use crate::source::{Batch, SourceKind};
use crate::state::hold::{ReplayOrder, RowsAhead, merge};

/// Rows that one session replays.
const REPLAY_ROWS: usize = 3;
/// Rows of the table that one session hands out ahead of them.
const ROWS_AHEAD: usize = 2;

/// A missed row that a reread did not bring away is worth another one after ten times as long.
const SWEEP_EVERY: Duration = Duration::from_millis(200);

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

impl Source {
    fn kind(&self) -> SourceKind {
        match self {
            Self::Stream(_) => SourceKind::Stream,
            Self::Numbers(_) | Self::Given => SourceKind::Numbers,
            Self::Pages(_) => SourceKind::Unsent,
        }
    }
}

/// One session of one relay: its machine, and the world's side of it.
pub struct Session {
    pub machine: Machine,
    pub token: FencingToken,
    pub connection: u64,
    pub source: Source,
    pub batches: VecDeque<Batch>,
    /// Everything that was handed out is marked or held, as the source was told.
    pub is_resolved: bool,
    /// Held rows that come again with every page, and how many wait for their mark.
    pub held: HashSet<u32>,
    pub owed: usize,
    pub marking: Option<Marking>,
    pub recording: Option<Recording>,
    /// A look that was asked for.
    pub looking: Option<Progress>,
    /// Rows that stood unsent, and the position behind them.
    pub candidates: Option<(Vec<Event>, Lsn)>,
    pub holes: Holes,
    pub highest: i64,
    pub confirm: u64,
    /// What an earlier session found that could be confirmed.
    pub confirmed_before: u64,
    /// When the grace period is over, once it was asked to stop.
    pub stop_until: Option<Duration>,
    pub lost: Option<Loss>,
    /// Rolled-back numbers, as far as it was told of them.
    pub rolled_back: RangeSet,
}

impl Session {
    pub fn has_statement(&self) -> bool {
        self.marking.is_some() || self.recording.is_some()
    }

    pub fn is_stream(&self) -> bool {
        matches!(self.source, Source::Stream(_))
    }

    fn phase(&self) -> &Phase {
        &self.machine.terms().phase
    }

    pub fn is_catch_up(&self) -> bool {
        *self.phase() == Phase::CatchUp
    }

    pub fn is_steady(&self) -> bool {
        let is_fed = self.machine.wants_batch(true);
        *self.phase() == Phase::Steady && is_fed && !self.has_statement()
    }

    pub fn replays(&self) -> &[i64] {
        match self.phase() {
            Phase::Replay(copies) => copies.entries(),
            _ => &[],
        }
    }

    /// The server is gone, and with it what it was asked.
    pub fn forget_statements(&mut self) {
        if let Some(marking) = &mut self.marking {
            marking.is_answered = true;
        }
        if let Some(recording) = &mut self.recording {
            recording.is_answered = true;
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
            self.relays[relay].carry_over.forget();
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

    #[expect(
        clippy::too_many_lines,
        reason = "it follows the opening of a session step by step"
    )]
    fn open(&mut self, relay: usize, token: FencingToken) {
        self.record_carry_over(relay);
        self.leave_to_the_table(relay);
        if self.relays[relay].mode == Mode::Stream && !self.prepare_slot() {
            return;
        }
        let held = self.relays[relay].core().held();
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
        let (marks, owed) = self.marks(relay, ledger, &token);
        let found = Found {
            marks,
            recorded,
            owed,
        };
        let terms = self.terms(relay, &token, phase, source.kind());
        let now = self.now;
        let process = &mut self.relays[relay];
        process.left_in_order = false;
        let Some(mut memory) = process.memory.take() else {
            return;
        };
        if terms.phase == Phase::CatchUp {
            memory.read_table_anew();
        }
        let confirmed_before = memory.core.confirmable();
        if process.producer.is_none() {
            process.producer = Some(self.broker.start(relay));
        }
        process.session = Some(Session {
            machine: Machine::begin(memory, terms, found, now),
            token,
            connection,
            source,
            batches: given.into_iter().collect(),
            is_resolved: true,
            held: HashSet::new(),
            owed: 0,
            marking: None,
            recording: None,
            looking: None,
            candidates: None,
            holes: Holes::new(RollbackProof::NeedsStream),
            highest: self.setting.first - 1,
            confirm: 0,
            confirmed_before: confirmed_before.map_or(0, |lsn| lsn.0),
            stop_until: None,
            lost: None,
            rolled_back: RangeSet::new(),
        });
        self.give(relay, Input::TimePassed);
    }

    fn terms(&self, relay: usize, token: &FencingToken, phase: Phase, source: SourceKind) -> Terms {
        let looks = match self.setting.mark {
            _ if !source.is_stream() => None,
            Mark::None => None,
            Mark::Ledger => Some(Looks::ByNumber),
            Mark::SentAt | Mark::Delete => Some(Looks::ByMark { has_numbers: true }),
        };
        Terms {
            mark: self.setting.mark,
            mode: match self.relays[relay].mode {
                Mode::Stream => config::Mode::Replication,
                Mode::Polling => config::Mode::Polling,
            },
            phase,
            source,
            order_is_told: true,
            layout: layout(),
            generation: 1,
            token: token.clone(),
            shutdown_notices: 0,
            sweep_every: SWEEP_EVERY,
            looks,
            removal: None,
        }
    }

    /// How rows are marked, and those whose mark is owed.
    fn marks(
        &self,
        relay: usize,
        ledger: Option<Ledger>,
        token: &FencingToken,
    ) -> (Marks, Vec<Delivered>) {
        let mark = self.setting.mark;
        let (record, owed) = self.database.marks.load();
        let marks = match (ledger, self.relays[relay].mode) {
            (Some(ledger), _) => Marks::Ledger(ledger),
            (None, _) if mark == Mark::None => Marks::None,
            (None, Mode::Polling) => Marks::rows(mark, &TABLE, token.clone()),
            (None, Mode::Stream) => {
                let below = Lsn(self.server.wal);
                Marks::rows_beside_a_stream(mark, &TABLE, token.clone(), record, below)
            }
        };
        (marks, owed)
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
            let waits = self.relays[relay]
                .carry_over
                .undecodable_commit_lsn
                .is_some();
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
}
