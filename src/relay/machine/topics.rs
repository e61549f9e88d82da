//! The topics of a session: asking for those that are held, and noticing when one has grown or a partition has no
//! leader.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::memory::{Memory, Partitioner};
use super::{Effect, End, Machine};
use crate::core::{Ticket, TopicPartition, TopicState, partition_of};
use crate::encode::Record;

/// Where topics are known that can be written, rows wait no longer than this to hear of another: those behind them find
/// no place.
const ANSWER_AWAITED_MAX: Duration = Duration::from_secs(2);

/// The row that waits longest to hear of its topic, and since when it is the one.
#[derive(Clone, Copy, Debug)]
pub(super) struct AwaitedAnswer {
    ticket: Ticket,
    since: Duration,
}

/// What must be there so that a record can go out: its topic, or its partition where that has lost its leader.
pub(super) fn place_of<'r>(leaderless: &'r [TopicPartition], record: &'r Record) -> &'r Arc<str> {
    let place = leaderless.iter().find(|place| place.takes(record));
    place.map_or(&record.topic, TopicPartition::name)
}

impl Memory {
    /// The partition into which the producer puts a record; `None` where nobody can say or it has no key.
    pub(super) fn partition_of(&self, record: &Record) -> Option<u32> {
        if self.partitioner == Partitioner::Configured {
            return None;
        }
        let partitions = *self.partitions.get(&record.topic)?;
        partition_of(record, u32::try_from(partitions).ok()?)
    }

    /// Learns from what is held which partitions have no leader, unless nobody can say which keys they take.
    pub(super) fn leaderless(&self) -> Vec<TopicPartition> {
        if self.partitioner == Partitioner::Configured {
            return Vec::new();
        }
        let held = self.core.held().topics();
        let places = held.filter_map(|(name, _)| TopicPartition::parse(name));
        let mut places: Vec<_> = places.collect();
        // After a topic has grown a record may be of two: the same one each time.
        places.sort_unstable_by(|one, other| one.name().cmp(other.name()));
        places
    }
}

impl Machine {
    /// Asks whether held topics can be written again; ends the session where rows that are held among others are to be
    /// looked at.
    pub(super) fn ask_for_topics(
        &mut self,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let is_due = self.memory.core.pass_turn_of_topics();
        self.memory.ask_questions(effects);
        self.look_at_asking(now);
        is_due.then(|| self.released("paused topics can be written by now"))
    }

    /// Rows that wait for an answer for long, while Kafka answers, let those behind them pass.
    fn look_at_asking(&mut self, now: Duration) {
        let core = &mut self.memory.core;
        let Some(ticket) = core.oldest_asking() else {
            self.feed.awaited = None;
            return;
        };
        let oldest = AwaitedAnswer { ticket, since: now };
        let awaited = *self.feed.awaited.get_or_insert(oldest);
        if awaited.ticket != ticket {
            self.feed.awaited = Some(oldest);
        } else if now.saturating_sub(awaited.since) >= ANSWER_AWAITED_MAX
            && core.held().available().next().is_some()
        {
            core.give_up_asking();
        }
    }

    /// Takes the answers to questions.
    pub(super) fn take_topics(
        &mut self,
        answers: &[(Arc<str>, TopicState)],
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<End> {
        let mut is_due = false;
        let among_others = self.memory.core.held().topics_among_others();
        for (topic, state) in answers {
            is_due |= self.take_topic(topic, state, now, effects);
        }
        self.memory.look_at_leaders();
        self.feed.leaderless = self.memory.leaderless();
        self.announce_others(among_others);
        self.memory.ask_questions(effects);
        is_due.then(|| self.released("a paused topic can be written again"))
    }

    /// Takes one answer; `true` when rows that waited for it can go out.
    fn take_topic(
        &mut self,
        topic: &Arc<str>,
        state: &TopicState,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if *state == TopicState::Leaderless {
            self.take_leaderless(topic, now);
            return false;
        }
        let core = &self.memory.core;
        if core.held().is_available(topic) {
            self.memory.refresh_if_silent(topic, state, effects);
            self.compare_partitions(topic, state, effects);
            return false;
        }
        let was_held = core.held().topic_hold(topic).is_some();
        let is_due = self.memory.learn(topic, state);
        match state {
            TopicState::Available { .. } if was_held => {
                info!(%topic, "a paused topic can be written again");
            }
            TopicState::Available { partitions } => {
                info!(%topic, partitions, "publishing to topic");
            }
            TopicState::Unknown | TopicState::NotCreated(_) | TopicState::Denied => {
                if !was_held {
                    self.memory.tell_hold(topic, effects);
                }
            }
            TopicState::Leaderless => {}
        }
        is_due
    }

    /// Holds the rows of a partition that has lost its leader: those in flight wait for as long as an election takes, then
    /// they are given up and read again, so that nothing waits behind them.
    fn take_leaderless(&mut self, name: &Arc<str>, now: Duration) {
        self.memory.hold_leaderless(name, now);
        self.feed.leaderless = self.memory.leaderless();
        if self.memory.waits_for_leader(now) {
            self.succession.lose_leader();
        }
    }

    /// A topic that has other partitions than before is written by a new producer, once nothing is in flight: what was
    /// sent under the old number is acknowledged before anything is sent under the new one.
    ///
    /// That a topic can't be seen for a moment is the producer's to wait for.
    fn compare_partitions(
        &mut self,
        topic: &Arc<str>,
        state: &TopicState,
        effects: &mut Vec<Effect>,
    ) {
        let TopicState::Available { partitions: now } = state else {
            return;
        };
        let memory = &mut self.memory;
        let before = *memory.partitions.entry(topic.clone()).or_insert(*now);
        // The producer that works goes on with those that it knows.
        if before == *now || memory.grown.insert(topic.clone(), *now) == Some(*now) {
            return;
        }
        warn!(
            %topic,
            before,
            now,
            "the topic's number of partitions has changed: keys move to others, and consumers see no order across them"
        );
        self.start_successor("a topic has other partitions", effects);
    }

    /// Says it once for all topics that are held without a name.
    fn announce_others(&self, before: usize) {
        let topics = self.memory.core.held().topics_among_others();
        if before == 0 && topics > 0 {
            warn!(
                "so many topics can't be written that further ones are paused together; `/status` counts them"
            );
        }
    }
}
