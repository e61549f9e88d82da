//! Kafka: partitions that hold records, and producers whose requests it appends, refuses or forgets to answer.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use fastrand::Rng;

use super::event::{Event, Flaw, TOPIC_PARTITIONS};
use crate::core::{Fault, Ticket};

/// Partitions that a topic may have in the end.
pub const TOPIC_PARTITIONS_MAX: u32 = TOPIC_PARTITIONS + 1;
/// Partitions of both topics.
const QUEUES: usize = 2 * TOPIC_PARTITIONS_MAX as usize;

/// A record on its way.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    pub ticket: Ticket,
    pub event: Event,
    /// Its topic, and the partition where its producer puts it; without one it goes to any.
    pub topic: usize,
    pub partition: Option<u32>,
}

/// What a producer has in flight.
#[derive(Default)]
pub struct Producer {
    /// Its relay; `None` where that is gone and requests are still under way.
    pub owner: Option<usize>,
    queues: [VecDeque<Outgoing>; QUEUES],
    unreported: [VecDeque<Outgoing>; QUEUES],
}

/// What became of one request.
pub enum Answer {
    Appended(Vec<Event>),
    /// With the row that is the only one to be refused, and at fault.
    Refused(Vec<(Ticket, Fault)>, Option<u32>),
}

/// The brokers.
pub struct Broker {
    pub producers: BTreeMap<u64, Producer>,
    started: u64,
    /// How many partitions each topic has.
    pub partitions: [u32; 2],
    /// Partitions without a leader, by their topic.
    pub leaderless: BTreeSet<(usize, u32)>,
    /// Topics that can't be written.
    pub denied: [bool; 2],
    pub is_down: bool,
    /// Rows that were refused and are taken now.
    pub mended: HashSet<u32>,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            producers: BTreeMap::new(),
            started: 0,
            partitions: [TOPIC_PARTITIONS; 2],
            leaderless: BTreeSet::new(),
            denied: [false; 2],
            is_down: false,
            mended: HashSet::new(),
        }
    }
}

fn queue_of(topic: usize, partition: u32) -> usize {
    topic * TOPIC_PARTITIONS_MAX as usize + partition as usize
}

impl Broker {
    pub fn start(&mut self, owner: usize) -> u64 {
        self.started += 1;
        let producer = Producer {
            owner: Some(owner),
            ..Producer::default()
        };
        self.producers.insert(self.started, producer);
        self.started
    }

    pub fn send(&mut self, producer: u64, outgoing: Outgoing) {
        let has_leader = |partition: &u32| !self.leaderless.contains(&(outgoing.topic, *partition));
        let any = (0..self.partitions[outgoing.topic]).find(has_leader);
        let partition = outgoing.partition.or(any).unwrap_or(0);
        if let Some(producer) = self.producers.get_mut(&producer) {
            producer.queues[queue_of(outgoing.topic, partition)].push_back(outgoing);
        }
    }

    /// Handles one request of some producer.
    pub fn handle(&mut self, rng: &mut Rng) -> Option<(u64, Answer)> {
        let is_sending = |producer: &Producer| producer.queues.iter().any(|q| !q.is_empty());
        self.producers
            .retain(|_, producer| producer.owner.is_some() || is_sending(producer));
        let leaderless = &self.leaderless;
        let leads = |queue: usize| {
            let of_topic = TOPIC_PARTITIONS_MAX as usize;
            !leaderless.contains(&(queue / of_topic, (queue % of_topic) as u32))
        };
        let can_send =
            |producer: &Producer, queue: usize| !producer.queues[queue].is_empty() && leads(queue);
        let is_sending = |producer: &Producer| (0..QUEUES).any(|queue| can_send(producer, queue));
        let mut sending: Vec<_> = self
            .producers
            .iter_mut()
            .filter(|(_, producer)| is_sending(producer))
            .collect();
        if self.is_down || sending.is_empty() {
            return None;
        }
        let (id, producer) = sending.swap_remove(rng.usize(..sending.len()));
        let from = rng.usize(..QUEUES);
        let place = (0..QUEUES)
            .map(|offset| (from + offset) % QUEUES)
            .find(|place| can_send(producer, *place))?;
        let queue = &mut producer.queues[place];
        let size = rng.usize(1..=queue.len().min(4));
        let batch: Vec<Outgoing> = queue.drain(..size).collect();
        if self.denied[place / TOPIC_PARTITIONS_MAX as usize] {
            let refused = batch.iter().map(|record| record.ticket);
            let refused = refused.map(|ticket| (ticket, Fault::Topic("denied".to_owned())));
            return Some((*id, Answer::Refused(refused.collect(), None)));
        }
        let is_bad = |record: &Outgoing| {
            record.event.flaw == Flaw::Refused && !self.mended.contains(&record.event.id)
        };
        if batch.iter().any(is_bad) {
            let names_the_row = rng.bool();
            let refused = batch
                .iter()
                .filter(|record| !names_the_row || is_bad(record));
            let refused: Vec<_> = refused.collect();
            let alone = match refused.as_slice() {
                [record] => Some(record.event.id),
                _ => None,
            };
            let refused = refused.iter();
            let refused = refused.map(|record| (record.ticket, Fault::Row("refused".to_owned())));
            return Some((*id, Answer::Refused(refused.collect(), alone)));
        }
        producer.unreported[place].extend(&batch);
        let events = batch.iter().map(|record| record.event).collect();
        Some((*id, Answer::Appended(events)))
    }

    /// Reports some of what was appended, each partition in order.
    pub fn report(&mut self, producer: u64, rng: &mut Rng, most: usize) -> Vec<Ticket> {
        let Some(producer) = self.producers.get_mut(&producer) else {
            return Vec::new();
        };
        let mut reported = Vec::new();
        for _ in 0..most {
            let place = rng.usize(..QUEUES);
            reported.extend(producer.unreported[place].pop_front());
        }
        reported.iter().map(|record| record.ticket).collect()
    }

    /// Whether something waits to be appended or reported.
    pub fn is_busy(&self, producer: u64) -> bool {
        self.producers.get(&producer).is_some_and(|producer| {
            let queues = producer.queues.iter().chain(&producer.unreported);
            queues.into_iter().any(|queue| !queue.is_empty())
        })
    }

    /// Ends a producer; returns what it did not report. Its requests may still be under way.
    pub fn end(&mut self, producer: u64, rng: &mut Rng) -> Vec<Event> {
        let Some(mut ended) = self.producers.remove(&producer) else {
            return Vec::new();
        };
        let left = ended.queues.iter().chain(&ended.unreported).flatten();
        let left = left.map(|record| record.event).collect();
        if rng.bool() {
            ended.owner = None;
            ended.unreported = Default::default();
            self.producers.insert(producer, ended);
        }
        left
    }

    /// A refused request ends its producer: what is queued behind it is never appended.
    pub fn purge_refused(&mut self, producer: u64) {
        if let Some(producer) = self.producers.get_mut(&producer) {
            producer.queues.iter_mut().for_each(VecDeque::clear);
        }
    }

    /// A partition loses its leader, or has it back.
    pub fn change_leader(&mut self, rng: &mut Rng) {
        let topic = rng.usize(..2);
        let place = (topic, rng.u32(..self.partitions[topic]));
        if !self.leaderless.remove(&place) {
            self.leaderless.insert(place);
        }
    }
}
