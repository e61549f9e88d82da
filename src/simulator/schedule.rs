//! What a seed stands for: a setting, and the steps that are taken in it.

use fastrand::Rng;

use super::server::Habits;
use crate::config::{CatchUpFrom, FaultPolicy, Mark};
use crate::mark::ledger::SEGMENT_ROWS;

/// Where the rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Stream,
    Polling,
}

/// What stays the same throughout one schedule.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub mark: Mark,
    pub mode: Mode,
    pub policy: FaultPolicy,
    pub window_rows: usize,
    pub relays: usize,
    /// The first number of the sequence.
    pub first: i64,
    pub habits: Habits,
    pub catch_up: CatchUpFrom,
}

impl Setting {
    pub fn has_marks(&self) -> bool {
        self.mark != Mark::None
    }

    /// Whether the rows carry their marks themselves.
    pub fn marks_rows(&self) -> bool {
        matches!(self.mark, Mark::SentAt | Mark::Delete)
    }
}

/// One kind of step; what it does in detail follows from its salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Flush,
    Relay,
    Broker,
    Report,
    Elapse,
    Kill,
    Freeze,
    Thaw,
    Stop,
    Disconnect,
    FailProducer,
    CrashServer,
    RestartServer,
    PersistSlot,
    Gap,
    AdvanceSlot,
    DropSlot,
    Topic,
    /// A partition loses its leader, or has it back.
    Leader,
    /// A topic gets another partition.
    Grow,
    /// The secrets for Kafka are others.
    Rotate,
    Operator,
    SwitchMode,
    /// Another outbox whose slot has the same name.
    Neighbour,
    LateStatement,
}

/// One step of a schedule; its own seed keeps it the same when others are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    pub salt: u64,
}

/// How often a step is taken; faults only where the seed allows them.
const ALWAYS: [(Kind, u32); 8] = [
    (Kind::Write, 14),
    (Kind::Flush, 2),
    (Kind::Relay, 45),
    (Kind::Broker, 14),
    (Kind::Report, 12),
    (Kind::Elapse, 1),
    (Kind::PersistSlot, 1),
    (Kind::LateStatement, 1),
];
const FAULTS: [(Kind, u32); 13] = [
    (Kind::Kill, 1),
    (Kind::Freeze, 1),
    (Kind::Stop, 1),
    (Kind::Disconnect, 2),
    (Kind::FailProducer, 1),
    (Kind::CrashServer, 1),
    (Kind::RestartServer, 1),
    (Kind::Gap, 1),
    (Kind::AdvanceSlot, 1),
    (Kind::DropSlot, 1),
    (Kind::Topic, 1),
    (Kind::Operator, 2),
    (Kind::SwitchMode, 1),
];

/// What makes dead letters meet rows that wait for their topic.
const LETTERS: [(Kind, u32); 2] = [(Kind::Topic, 3), (Kind::Operator, 3)];

/// Partitions that are without a leader for longer than an election takes.
const LEADERS: [(Kind, u32); 2] = [(Kind::Leader, 3), (Kind::Elapse, 5)];

/// What makes one producer follow another.
const PRODUCERS: [(Kind, u32); 2] = [(Kind::Grow, 1), (Kind::Rotate, 2)];

/// A whole schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub setting: Setting,
    pub steps: Vec<Step>,
}

impl Schedule {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut setting = setting(&mut rng);
        let mut weights = ALWAYS.to_vec();
        weights.extend(FAULTS.into_iter().filter(|_| rng.u8(..10) < 4));
        if setting.policy == FaultPolicy::Follow {
            weights.extend(LETTERS);
        }
        if rng.u8(..8) == 0 {
            weights.push((Kind::Neighbour, 6));
        }
        if rng.u8(..6) == 0 {
            weights.extend(LEADERS);
        }
        if rng.u8(..6) == 0 {
            weights.extend(PRODUCERS);
        }
        if weights.iter().any(|(kind, _)| *kind == Kind::Freeze) {
            weights.push((Kind::Thaw, 1));
        }
        if !setting.has_marks() {
            let is_repaired = |kind| matches!(kind, Kind::Gap | Kind::AdvanceSlot);
            let is_mended = |kind| matches!(kind, Kind::DropSlot | Kind::SwitchMode);
            weights.retain(|(kind, _)| !is_repaired(*kind) && !is_mended(*kind));
        }
        let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
        let count = rng.usize(80..240);
        let steps = (0..count).map(|_| Step {
            kind: pick(&weights, rng.u32(..sum)),
            salt: rng.u64(..),
        });
        let steps = steps.collect();
        if setting.mark == Mark::Ledger && rng.bool() {
            setting.catch_up = CatchUpFrom::Table;
        }
        Self { setting, steps }
    }
}

fn pick(weights: &[(Kind, u32)], mut roll: u32) -> Kind {
    for (kind, weight) in weights {
        match roll.checked_sub(*weight) {
            Some(left) => roll = left,
            None => return *kind,
        }
    }
    Kind::Relay
}

fn setting(rng: &mut Rng) -> Setting {
    let mark = match rng.u8(..10) {
        0 | 1 => Mark::None,
        2 | 3 => Mark::SentAt,
        4 | 5 => Mark::Delete,
        _ => Mark::Ledger,
    };
    let mode = match rng.bool() && mark != Mark::None {
        true => Mode::Polling,
        false => Mode::Stream,
    };
    let policy = match rng.u8(..5) {
        _ if matches!(mark, Mark::SentAt | Mark::Delete) => FaultPolicy::Block,
        0 => FaultPolicy::Follow,
        1 => FaultPolicy::Continue,
        _ => FaultPolicy::Block,
    };
    Setting {
        mark,
        mode,
        policy,
        window_rows: rng.usize(3..16),
        relays: rng.usize(1..=2),
        first: match rng.u8(..4) {
            0 => SEGMENT_ROWS - 12,
            _ => 1,
        },
        habits: Habits {
            flawed: if rng.bool() && policy != FaultPolicy::Follow {
                0
            } else {
                rng.u8(3..12)
            },
            asynchronous: if rng.bool() { 0 } else { rng.u8(2..7) },
            removing: if rng.u8(..3) > 0 { 0 } else { rng.u8(1..4) },
            changing: match mark {
                Mark::SentAt | Mark::Delete if rng.bool() => rng.u8(1..4),
                _ => 0,
            },
            unmarkable: match mark {
                Mark::SentAt | Mark::Delete if rng.u8(..3) == 0 => rng.u8(4..12),
                _ => 0,
            },
            unseen: if rng.bool() { 0 } else { rng.u8(1..6) },
        },
        catch_up: CatchUpFrom::Stream,
    }
}
