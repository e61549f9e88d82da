//! The topics of a session: asking for those that are held, and noticing when one has grown or a partition has no
//! leader.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{End, Relay, Run};
use crate::encode::Record;
use crate::publish::{Place, TopicState, partition_of};

/// Every so many questions for the others, a topic that refused records is tried again, and a topic that is written is
/// asked for its partitions: 30 s.
const ALL_TOPICS_EVERY_TICKS: u32 = 15;

/// A single broker that was frozen, fenced and registered again leads its partitions within 2 s (Kafka 4.1.1); brokers
/// hear of an election by then too.
const ELECTION_MAX: Duration = Duration::from_secs(5);

impl Run<'_> {
    pub(super) fn look_up(&self, topic: Option<Arc<str>>) {
        if let (Some(topic), Some(producer)) = (topic, &self.relay.producer) {
            producer.publisher.look_up(topic);
        }
    }

    /// Asks whether held topics can be written again; one that refused records less often, since
    /// only a record shows whether it still does.
    pub(super) fn ask_for_topics(&mut self) {
        self.topic_ticks += 1;
        // What fills the window may wait for a leader.
        let is_turn_of_all =
            self.topic_ticks.is_multiple_of(ALL_TOPICS_EVERY_TICKS) || self.relay.core.is_stuck();
        let held = self.relay.core.held();
        let due = held
            .topics()
            .filter(|(_, hold)| is_turn_of_all || !hold.is_refused);
        let mut due: Vec<_> = due.map(|(topic, _)| topic.clone()).collect();
        if is_turn_of_all {
            let is_topic = |name: &&Arc<str>| Place::parse(name).is_none();
            due.extend(held.available().filter(is_topic).cloned());
        }
        for topic in due {
            self.look_up(Some(topic));
        }
    }

    /// What must be there so that a record can go out: its topic, or its partition where that has lost its leader.
    pub(super) fn place_of<'r>(&'r self, record: &'r Record) -> &'r Arc<str> {
        let place = self.leaderless.iter().find(|place| place.takes(record));
        place.map_or(&record.topic, Place::name)
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
        self.leaderless = held.filter_map(|(name, _)| Place::parse(name)).collect();
    }

    /// Takes the answer to a question.
    pub(super) fn take_topic(&mut self, topic: &Arc<str>, state: &TopicState) -> Option<End> {
        if *state == TopicState::Leaderless {
            self.take_leaderless(topic);
            return None;
        }
        let is_topic = |known: &Arc<str>| known == topic;
        if self.relay.core.held().available().any(is_topic) {
            self.relay.refresh_if_silent(topic, state);
            self.compare_partitions(topic, state);
            return None;
        }
        let has_rows = self.relay.learn(topic, state);
        self.note_leaderless();
        if has_rows {
            info!(%topic, "a held topic can be written again");
            return Some(self.released("a held topic can be written again"));
        }
        self.announce_topic(topic, state);
        None
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

    fn announce_topic(&self, topic: &Arc<str>, state: &TopicState) {
        match state {
            TopicState::Available { partitions } => {
                info!(%topic, partitions, "publishing to topic")
            }
            TopicState::Leaderless => {}
            TopicState::Unknown | TopicState::Denied => {
                let mut held = self.relay.core.held().topics();
                if held.any(|(name, hold)| name == topic && hold.rows == 0) {
                    warn!(
                        %topic,
                        reason = ?state,
                        remedy = %crate::kafka::create_command(&self.relay.config.kafka, topic),
                        "topic can't be written: its rows are held, all others flow"
                    );
                }
            }
        }
    }
}

impl Relay {
    /// Takes an answer while no session runs; `true` when rows wait for a leader for too long.
    pub(super) fn take_topic_at_rest(&mut self, topic: &Arc<str>, state: &TopicState) -> bool {
        if *state == TopicState::Leaderless {
            self.hold_leaderless(topic);
            return self.waits_for_leader();
        }
        let is_topic = |known: &Arc<str>| known == topic;
        if self.core.held().available().any(is_topic) {
            self.refresh_if_silent(topic, state);
        } else {
            self.learn(topic, state);
        }
        false
    }

    fn hold_leaderless(&mut self, name: &Arc<str>) {
        let is_held = self.core.held().topic_hold(name).is_some();
        if is_held || self.config.kafka.allow_partitioner {
            return;
        }
        self.core.topic(name, &TopicState::Leaderless);
        self.leaderless_since.get_or_insert_with(Instant::now);
        warn!(partition = %name, "the partition has no leader: its rows are held, all others flow");
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
        let has_rows = self.core.topic(topic, state);
        let mut held = self.core.held().topics();
        if !held.any(|(name, _)| Place::parse(name).is_some()) {
            self.leaderless_since = None;
        }
        has_rows
    }
}
