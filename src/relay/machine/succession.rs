//! How one producer follows another without a row twice: nothing new is sent until the old one has nothing in flight.

use std::time::Duration;

use tracing::info;

use super::{Effect, End, Machine, Moment};
use crate::core::SessionEnd;
use crate::publish::Deliveries;

/// How long an outdated producer may be silent before what it has in flight is given up: an acknowledgement
/// that takes longer than `socket.timeout.ms`, 10 s, can't arrive at all.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The same while no broker answers it: most likely they refuse the old secrets.
pub(crate) const SILENCE_UNANSWERED_MAX: Duration = Duration::from_secs(5);
/// How long rows of other partitions may take to be acknowledged once those of a lost one are given up.
pub(crate) const LEADERLESS_DRAIN_MAX: Duration = Duration::from_secs(1);

const LOST_LEADER: &str = "a partition has lost its leader, and its rows stand before others";

/// How far one producer has followed another.
pub(super) enum Succession {
    /// One producer works, and no other is to.
    Settled,
    /// Another one is being started, for this reason.
    Starting(&'static str),
    /// It waits for the old one, which was heard of last at this moment.
    Waiting { why: &'static str, since: Duration },
    /// A partition has lost its leader, and rows in flight wait.
    LeaderLost,
    /// The producer is being ended, with the session, for this reason.
    GivingUp(String),
}

impl Succession {
    pub(super) fn is_settled(&self) -> bool {
        matches!(self, Self::Settled)
    }

    pub(super) fn is_giving_up(&self) -> bool {
        matches!(self, Self::GivingUp(_))
    }

    pub(super) fn started(&mut self, now: Duration) -> Option<End> {
        if let Self::Starting(why) = *self {
            *self = Self::Waiting { why, since: now };
        }
        None
    }

    pub(super) fn failed(&mut self) -> Option<End> {
        if let Self::Starting(_) = self {
            *self = Self::Settled;
        }
        None
    }

    /// The old producer is not silent.
    pub(super) fn delay(&mut self, now: Duration) {
        if let Self::Waiting { since, .. } = self {
            *since = now;
        }
    }

    pub(super) fn lose_leader(&mut self) {
        *self = Self::LeaderLost;
    }
}

impl Machine {
    /// Starts a producer that takes over when nothing is in flight; nothing new is sent until then.
    pub(super) fn start_successor(
        &mut self,
        why: &'static str,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        if self.succession.is_settled() && self.drain_until.is_none() {
            self.succession = Succession::Starting(why);
            effects.push(Effect::StartSuccessor(why));
        }
        None
    }

    /// Lets the new producer take over once nothing is in flight.
    ///
    /// What the old one can't finish is given up, and the session ends: the source hands it out again.
    pub(super) fn succeed(
        &mut self,
        moment: &Moment<'_>,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        match self.succession {
            Succession::LeaderLost => {
                self.memory.give_up_leaderless();
                self.give_up(LEADERLESS_DRAIN_MAX, LOST_LEADER.to_owned(), effects);
            }
            Succession::Waiting { why, since } if self.memory.core.sent() > 0 => {
                let limit = match moment.is_unanswered {
                    true => SILENCE_UNANSWERED_MAX,
                    false => SILENCE_MAX,
                };
                if moment.now.saturating_sub(since) >= limit {
                    let reason =
                        format!("{why}, and the old producer did not finish the rows in flight");
                    self.give_up(Duration::ZERO, reason, effects);
                }
            }
            Succession::Waiting { .. } => {
                self.succession = Succession::Settled;
                self.memory.go_by_grown();
                effects.push(Effect::TakeOver);
                self.memory.core.ask_again();
                self.memory.ask_questions(effects);
                info!("the new producer has taken over");
            }
            Succession::Settled | Succession::Starting(_) | Succession::GivingUp(_) => {}
        }
        None
    }

    fn give_up(&mut self, within: Duration, reason: String, effects: &mut Vec<Effect>) {
        self.succession = Succession::GivingUp(reason);
        effects.push(Effect::GiveUpProducer { within });
    }

    /// Takes a producer's end, which ends the session.
    pub(super) fn take_producer_end(
        &mut self,
        end: Option<SessionEnd>,
        effects: &mut Vec<Effect>,
    ) -> End {
        End::Producer(match end {
            Some(end) => self.memory.producer_ended(&end, effects),
            None => "the producer's thread ended".to_owned(),
        })
    }

    /// The same of one that was given up, with what it delivered until then.
    pub(super) fn take_given_up(
        &mut self,
        delivered: &[Deliveries],
        end: Option<SessionEnd>,
        effects: &mut Vec<Effect>,
    ) -> End {
        for delivered in delivered {
            self.memory.acknowledged(delivered);
        }
        let ended = self.take_producer_end(end, effects);
        match std::mem::replace(&mut self.succession, Succession::Settled) {
            Succession::GivingUp(reason) => End::Producer(reason),
            _ => ended,
        }
    }
}
