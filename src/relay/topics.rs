//! The topics of a session: asking for those that are held, and noticing when one has grown or a partition has no
//! leader.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{End, Relay, Run};
use crate::core::{Help, TopicHold};
use crate::core::{TopicPartition, TopicState, partition_of};
use crate::encode::Record;
use crate::kafka::{NOT_CREATED, allow_command, create_command};

/// A single broker that was frozen, fenced and registered again leads its partitions within 2 s (Kafka 4.1.1); brokers
/// hear of an election by then too.
const ELECTION_MAX: Duration = Duration::from_secs(5);

/// Where topics are known that can be written, rows wait no longer than this to hear of another: those behind them find
/// no place.
const ANSWER_AWAITED_MAX: Duration = Duration::from_secs(2);

/// What must be there so that a record can go out: its topic, or its partition where that has lost its leader.
pub(super) fn place_of<'r>(leaderless: &'r [TopicPartition], record: &'r Record) -> &'r Arc<str> {
    let place = leaderless.iter().find(|place| place.takes(record));
    place.map_or(&record.topic, TopicPartition::name)
}

impl Run<'_> {
    /// Asks what the core wants to know, many topics at once.
    pub(super) fn ask_questions(&mut self) {
        self.relay.ask_questions();
    }

    /// Asks whether held topics can be written again; ends the session where rows that are held among others are to be
    /// looked at.
    pub(super) fn ask_for_topics(&mut self) -> Option<End> {
        let is_due = self.relay.core.pass_turn_of_topics();
        self.ask_questions();
        self.look_at_asking();
        is_due.then(|| self.released("paused topics can be written by now"))
    }

    /// Rows that wait for an answer for long, while Kafka answers, let those behind them pass.
    fn look_at_asking(&mut self) {
        let core = &mut self.relay.core;
        let Some(oldest) = core.oldest_asking() else {
            self.waits_for_answer = None;
            return;
        };
        let (known, since) = *self
            .waits_for_answer
            .get_or_insert_with(|| (oldest, Instant::now()));
        if known != oldest {
            self.waits_for_answer = Some((oldest, Instant::now()));
        } else if since.elapsed() >= ANSWER_AWAITED_MAX && core.held().available().next().is_some()
        {
            core.give_up_asking();
        }
    }

    /// The partition into which the producer puts a record; `None` where nobody can say or it has no key.
    pub(super) fn partition_of(&self, record: &Record) -> Option<u32> {
        if self.relay.config.kafka.allow_partitioner {
            return None;
        }
        let partitions = *self.relay.partitions.get(&record.topic)?;
        partition_of(record, u32::try_from(partitions).ok()?)
    }

    /// Learns from what is held which partitions have no leader, unless nobody can say which keys they take.
    pub(super) fn note_leaderless(&mut self) {
        if self.relay.config.kafka.allow_partitioner {
            return;
        }
        let held = self.relay.core.held().topics();
        self.leaderless = held
            .filter_map(|(name, _)| TopicPartition::parse(name))
            .collect();
    }

    /// Takes the answers to questions.
    pub(super) fn take_topics(&mut self, answers: &[(Arc<str>, TopicState)]) -> Option<End> {
        let mut is_due = false;
        let among_others = self.relay.core.held().topics_among_others();
        for (topic, state) in answers {
            is_due |= self.take_topic(topic, state);
        }
        self.relay.look_at_leaders();
        self.note_leaderless();
        self.announce_others(among_others);
        self.ask_questions();
        is_due.then(|| self.released("a paused topic can be written again"))
    }

    /// Takes one answer; `true` when rows that waited for it can go out.
    fn take_topic(&mut self, topic: &Arc<str>, state: &TopicState) -> bool {
        let core = &self.relay.core;
        if *state == TopicState::Leaderless {
            self.take_leaderless(topic);
            return false;
        }
        if core.held().is_available(topic) {
            self.relay.refresh_if_silent(topic, state);
            self.compare_partitions(topic, state);
            return false;
        }
        let was_held = core.held().topic_hold(topic).is_some();
        let is_due = self.relay.learn(topic, state);
        match state {
            TopicState::Available { .. } if was_held => {
                info!(%topic, "a paused topic can be written again");
            }
            TopicState::Available { partitions } => {
                info!(%topic, partitions, "publishing to topic");
            }
            TopicState::Unknown | TopicState::NotCreated(_) | TopicState::Denied => {
                if !was_held {
                    self.relay.announce_hold(topic);
                }
            }
            TopicState::Leaderless => {}
        }
        is_due
    }

    /// Holds the rows of a partition that has lost its leader: those in flight wait for as long as an election takes, then
    /// they are given up and read again, so that nothing waits behind them.
    fn take_leaderless(&mut self, name: &Arc<str>) {
        self.relay.hold_leaderless(name);
        self.note_leaderless();
        self.has_lost_leader |= self.relay.waits_for_leader();
    }

    /// A topic that has other partitions than before is written by a new producer, once nothing is in flight: what was
    /// sent under the old number is acknowledged before anything is sent under the new one.
    ///
    /// That a topic can't be seen for a moment is the producer's to wait for.
    fn compare_partitions(&mut self, topic: &Arc<str>, state: &TopicState) {
        let TopicState::Available { partitions: now } = state else {
            return;
        };
        let before = self.relay.partitions.insert(topic.clone(), *now);
        let Some(before) = before.filter(|before| before != now) else {
            return;
        };
        warn!(
            %topic,
            before,
            now,
            "the topic's number of partitions has changed: keys move to others, and consumers see no order across them"
        );
        self.start_successor("a topic has other partitions");
    }

    /// Says it once for all topics that are held without a name.
    fn announce_others(&self, before: usize) {
        let topics = self.relay.core.held().topics_among_others();
        if before == 0 && topics > 0 {
            warn!(
                "so many topics can't be written that further ones are paused together; `/status` counts them"
            );
        }
    }
}

impl Relay {
    /// Says that a topic's rows are held, and what helps.
    pub(super) fn announce_hold(&self, topic: &Arc<str>) {
        if let Some(hold) = self.core.held().topic_hold(topic) {
            let remedy = self.remedy(topic, hold).unwrap_or_default();
            warn!(
                %topic,
                reason = hold.reason,
                remedy,
                "topic can't be written: it is paused, all others flow"
            );
        }
    }

    /// What ends a hold, as far as it is known.
    pub(super) fn remedy(&self, topic: &str, hold: &TopicHold) -> Option<String> {
        match hold.help {
            Help::Create => Some(create_command(&self.config.kafka, topic)),
            Help::Allow => Some(allow_command(&self.config.kafka, topic)),
            Help::AsBrokersSay => Some(NOT_CREATED.to_owned()),
            Help::Unknown => None,
        }
    }

    /// Asks what the core wants to know.
    pub(super) fn ask_questions(&mut self) {
        let questions = self.core.take_questions();
        let Some(producer) = &self.producer else {
            return;
        };
        if !questions.usual.is_empty() {
            producer.publisher.look_up(questions.usual);
        }
        if !questions.urgent.is_empty() {
            producer.publisher.look_up_urgently(questions.urgent);
        }
        if !questions.watched.is_empty() {
            producer.publisher.watch(questions.watched);
        }
    }

    /// Takes answers while no session runs; `true` when rows wait for a leader for too long.
    pub(super) fn take_topics_at_rest(&mut self, answers: &[(Arc<str>, TopicState)]) -> bool {
        let mut has_lost_leader = false;
        for (topic, state) in answers {
            if *state == TopicState::Leaderless {
                self.hold_leaderless(topic);
                has_lost_leader |= self.waits_for_leader();
            } else if self.core.held().is_available(topic) {
                self.refresh_if_silent(topic, state);
            } else {
                self.learn(topic, state);
            }
        }
        self.look_at_leaders();
        has_lost_leader
    }

    fn hold_leaderless(&mut self, name: &Arc<str>) {
        let is_held = self.core.held().topic_hold(name).is_some();
        if is_held || self.config.kafka.allow_partitioner {
            return;
        }
        self.core.topic(name, &TopicState::Leaderless);
        self.leaderless_since.get_or_insert_with(Instant::now);
        warn!(partition = %name, "the partition has no leader: it is paused, all others flow");
    }

    /// A partition has been without a leader for longer than an election takes, and rows in flight have waited for long.
    fn waits_for_leader(&self) -> bool {
        let since = self.leaderless_since;
        since.is_some_and(|since| since.elapsed() >= ELECTION_MAX) && self.silent.is_some()
    }

    /// Takes what was found out about a topic; `true` when rows that waited for it can go out.
    pub(super) fn learn(&mut self, topic: &Arc<str>, state: &TopicState) -> bool {
        if let TopicState::Available { partitions } = state {
            self.partitions.insert(topic.clone(), *partitions);
        }
        self.core.topic(topic, state)
    }

    /// Notes whether every partition has its leader back.
    fn look_at_leaders(&mut self) {
        let mut held = self.core.held().topics();
        if !held.any(|(name, _)| TopicPartition::parse(name).is_some()) {
            self.leaderless_since = None;
        }
    }
}
