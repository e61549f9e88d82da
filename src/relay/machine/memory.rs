//! What a relay remembers from one session to the next: the rows in flight, and what was learned beside them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::Effect;
use super::read_before::ReadBefore;
use super::stall_detector::{self, StallDetector, Timestamps, Wait};
use super::sweep::Reread;
use crate::core::{Core, SessionEnd, Ticket, TopicPartition, TopicState};
use crate::observe::metrics::Metrics;
use crate::observe::status::Timestamp;
use crate::publish::Deliveries;
use crate::state::hold::Replayed;

/// A single broker that was frozen, fenced and registered again leads its partitions within 2 s (Kafka 4.1.1); brokers
/// hear of an election by then too.
const ELECTION_MAX: Duration = Duration::from_secs(5);

/// What outlives a session. Its machine has it for as long as one runs.
pub(crate) struct Memory {
    pub(crate) core: Core,
    /// Rows that Kafka acknowledged.
    pub(crate) delivered_rows: u64,
    pub(crate) replayed: Replayed,
    /// What the catch-up read where nothing is marked, for the stream brings some of it again.
    pub(super) read_before: ReadBefore,
    /// The rows for which the table was read last.
    pub(super) reread: Reread,
    /// Of the topics that were found.
    pub(super) partitions: HashMap<Arc<str>, usize>,
    /// Of topics that have other partitions by now, which the next producer goes by.
    pub(super) grown: HashMap<Arc<str>, usize>,
    /// Since when a partition has no leader, until its rows in flight are given up.
    leaderless_since: Option<Duration>,
    stalls: StallDetector,
    /// What the last look at the rows in flight said.
    wait: Option<Wait>,
    /// The row that the producer has said nothing of for long.
    silent: Option<Ticket>,
    pub(super) partitioner: Partitioner,
    pub(super) metrics: Arc<Metrics>,
}

/// What is seen of the rows in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InSight {
    /// What the last look said of them.
    pub(crate) wait: Option<Wait>,
    /// They wait for an acknowledgement, or to hear of their topic.
    pub(crate) is_awaited: bool,
    /// All that were acknowledged so far.
    pub(crate) delivered_rows: u64,
}

/// Who decides which partition a key goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Partitioner {
    /// murmur2 of the key, as the relay computes it too.
    Murmur2,
    /// One that the configuration names: nobody here can say which keys a partition takes.
    Configured,
}

impl Memory {
    pub(crate) fn new(core: Core, partitioner: Partitioner, metrics: Arc<Metrics>) -> Self {
        Self {
            core,
            delivered_rows: 0,
            replayed: Replayed::default(),
            read_before: ReadBefore::default(),
            reread: Reread::default(),
            partitions: HashMap::new(),
            grown: HashMap::new(),
            leaderless_since: None,
            stalls: StallDetector::default(),
            wait: None,
            silent: None,
            partitioner,
            metrics,
        }
    }

    /// Forgets everything in flight: another relay publishes from now on. The producer has ended.
    pub(crate) fn forget_all(&mut self) {
        self.core.forget_all();
        self.read_before = ReadBefore::default();
        self.reread = Reread::default();
        self.replayed = Replayed::default();
    }

    /// Forgets what an earlier reading of the table brought: it may not have come to Kafka, and be gone by now.
    pub(crate) fn read_table_anew(&mut self) {
        self.read_before = ReadBefore::default();
    }

    /// Rows that Kafka has, or gets, and that a mark is owed for: what a stop between two sessions would send again.
    pub(crate) fn owes_marks(&self) -> bool {
        self.core.sent() + self.core.unmarked() > 0
    }

    pub(crate) fn in_sight(&self) -> InSight {
        InSight {
            wait: self.wait,
            is_awaited: self.core.sent() > 0 || self.core.asking() > 0,
            delivered_rows: self.delivered_rows,
        }
    }

    /// Takes and counts rows that a broker acknowledged, whether a session is open or not.
    pub(crate) fn acknowledged(&mut self, delivered: &Deliveries) {
        self.core.delivered(&delivered.tickets);
        self.delivered_rows += delivered.tickets.len() as u64;
        self.metrics.delivered(delivered);
    }

    /// Draws the conclusions from a producer's end, and gives its reason.
    pub(crate) fn producer_ended(&mut self, end: &SessionEnd, effects: &mut Vec<Effect>) -> String {
        let held: HashSet<_> = self.held_names().collect();
        self.core.producer_ended(end);
        self.go_by_grown();
        for topic in self.held_names().filter(|topic| !held.contains(topic)) {
            self.tell_hold(&topic, effects);
        }
        match self.core.stubborn() {
            Some(id) => format!(
                "{}; event {id} draws it again and again, also when sent alone",
                end.reason
            ),
            None => end.reason.clone(),
        }
    }

    /// Another producer works from now on, which goes by the partitions that topics have by now.
    pub(super) fn go_by_grown(&mut self) {
        self.partitions.extend(self.grown.drain());
    }

    fn held_names(&self) -> impl Iterator<Item = Arc<str>> {
        self.core.held().topics().map(|(topic, _)| topic.clone())
    }

    pub(super) fn tell_hold(&self, topic: &Arc<str>, effects: &mut Vec<Effect>) {
        if let Some(hold) = self.core.held().topic_hold(topic) {
            effects.push(Effect::TellHold(topic.clone(), hold.clone()));
        }
    }

    /// Asks what the core wants to know, many topics at once.
    pub(crate) fn ask_questions(&mut self, effects: &mut Vec<Effect>) {
        let questions = self.core.take_questions();
        if !questions.is_empty() {
            effects.push(Effect::Ask(questions));
        }
    }

    /// Takes answers while no session runs; `true` when rows wait for a leader for too long.
    pub(crate) fn take_topics(
        &mut self,
        answers: &[(Arc<str>, TopicState)],
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let mut has_lost_leader = false;
        for (topic, state) in answers {
            if *state == TopicState::Leaderless {
                self.hold_leaderless(topic, now);
                has_lost_leader |= self.waits_for_leader(now);
            } else if self.core.held().is_available(topic) {
                self.refresh_if_silent(topic, state, effects);
            } else {
                self.learn(topic, state);
            }
        }
        self.look_at_leaders();
        has_lost_leader
    }

    pub(super) fn hold_leaderless(&mut self, name: &Arc<str>, now: Duration) {
        let is_held = self.core.held().topic_hold(name).is_some();
        if is_held || self.partitioner == Partitioner::Configured {
            return;
        }
        self.core.topic(name, &TopicState::Leaderless);
        self.leaderless_since.get_or_insert(now);
        warn!(partition = %name, "the partition has no leader: it is paused, all others flow");
    }

    /// A partition has been without a leader for longer than an election takes, and rows in flight have waited for long.
    pub(super) fn waits_for_leader(&self, now: Duration) -> bool {
        let since = self.leaderless_since;
        since.is_some_and(|since| now.saturating_sub(since) >= ELECTION_MAX)
            && self.silent.is_some()
    }

    /// The rows in flight of partitions without a leader are given up, once.
    pub(crate) fn give_up_leaderless(&mut self) {
        self.leaderless_since = None;
    }

    /// Takes what was found out about a topic; `true` when rows that waited for it can go out.
    pub(super) fn learn(&mut self, topic: &Arc<str>, state: &TopicState) -> bool {
        if let TopicState::Available { partitions } = state {
            self.partitions.insert(topic.clone(), *partitions);
        }
        self.core.topic(topic, state)
    }

    /// Notes whether every partition has its leader back.
    pub(super) fn look_at_leaders(&mut self) {
        let mut held = self.core.held().topics();
        if !held.any(|(name, _)| TopicPartition::parse(name).is_some()) {
            self.leaderless_since = None;
        }
    }

    /// Looks at what is in flight; to be called about once a second.
    pub(crate) fn look_at_waits(&mut self, now: Duration, on: Timestamp) {
        let seen = stall_detector::InFlight {
            oldest_sent: self.core.oldest_sent(),
            next: self.core.next_ticket(),
            is_asking: self.core.asking() > 0,
            delivered_rows: self.delivered_rows,
        };
        self.wait = self.stalls.look(seen, Timestamps { at: now, on });
        self.silent = self.wait.and(seen.oldest_sent);
    }

    /// Asks for the topic of a row that has waited for long; the answer goes to `refresh_if_silent`.
    pub(crate) fn ask_if_silent(&self, effects: &mut Vec<Effect>) {
        if let Some(topic) = self.silent_topic() {
            effects.push(Effect::Ask(vec![topic].into()));
        }
    }

    /// Lets a silent producer ask for leaders where the topic can be written and has as many partitions as before.
    pub(super) fn refresh_if_silent(
        &self,
        topic: &Arc<str>,
        state: &TopicState,
        effects: &mut Vec<Effect>,
    ) {
        let is_as_before = match state {
            TopicState::Available { partitions } => self.partitions.get(topic) == Some(partitions),
            _ => false,
        };
        if is_as_before && self.silent_topic().as_ref() == Some(topic) {
            effects.push(Effect::Refresh(topic.clone()));
        }
    }

    fn silent_topic(&self) -> Option<Arc<str>> {
        let name = self.core.topic_of(self.silent?)?;
        Some(TopicPartition::parse(name).map_or_else(|| name.clone(), |place| place.topic))
    }
}
