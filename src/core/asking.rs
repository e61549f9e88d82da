//! Rows that wait to hear whether their topic can be written, and the rows of their aggregates behind them; others pass.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::in_flight_row::{InFlightRow, RowKey, State};
use super::row::ByAggregate;
use super::topics::TopicAnswer;
use super::{
    Aggregate, Answered, Core, HeldRow, HoldReason, OTHERS, Offer, Questions, RowFacts, Window,
};
use crate::core::{Ticket, TopicState};

/// Of the window, the share that may wait so.
const SHARE: usize = 4;
/// While no more topics than these are asked for, a row that finds no place waits for the answer: many rows of one new
/// topic are no reason to put any aside. Beyond, they would keep others waiting for one answer after the other.
const TOPICS_AWAITED_MAX: usize = 16;

/// The rows that wait.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// In publishing order.
    tickets: VecDeque<Ticket>,
    aggregates: HashMap<Aggregate, usize, ByAggregate>,
    bytes: usize,
    /// Something was heard that may end a wait.
    is_answered: bool,
    /// A row waits for others ahead of it to be delivered.
    awaits_delivery: bool,
    /// The answers take too long: nobody waits for them any more.
    is_given_up: bool,
}

impl Asking {
    pub(super) fn has(&self, aggregate: Aggregate) -> bool {
        !self.tickets.is_empty() && self.aggregates.contains_key(&aggregate)
    }

    fn has_room(&self, window: &Window, bytes: usize) -> bool {
        self.tickets.is_empty()
            || (self.tickets.len() < window.rows_max / SHARE
                && self.bytes + bytes <= window.bytes_max / SHARE)
    }

    /// A row no longer waits.
    fn left(&mut self, entry: &InFlightRow) {
        self.bytes -= entry.bytes;
        if let Some(rows) = self.aggregates.get_mut(&entry.aggregate) {
            *rows -= 1;
            if *rows == 0 {
                self.aggregates.remove(&entry.aggregate);
            }
        }
    }

    pub(super) fn delivered(&mut self) {
        self.is_answered |= self.awaits_delivery;
    }

    pub(super) fn heard(&mut self) {
        self.is_answered = true;
    }
}

impl Core {
    /// Lets a row wait for its topic; where too many do, it is put aside among others of which no more is known.
    pub(super) fn ask(&mut self, row: &RowFacts<'_>, topic: &Arc<str>) -> Offer {
        let key = RowKey::of(row.seq, &row.id);
        if self.suspects.is_one_alone() || self.suspects.has(&key) {
            return Offer::Wait;
        }
        if !self.asking.is_given_up && self.asking.has_room(&self.window, row.bytes) {
            let ticket = self.admit(row, State::Asking, Some(topic.clone()));
            self.asking.tickets.push_back(ticket);
            *self.asking.aggregates.entry(row.aggregate).or_default() += 1;
            self.asking.bytes += row.bytes;
            return Offer::Ask(ticket);
        }
        let topics = &self.held.topics;
        let is_awaited = !self.asking.is_given_up && topics.asked() <= TOPICS_AWAITED_MAX;
        let is_full = topics.is_available(topic) && !topics.has_room_behind();
        if is_awaited || is_full || self.has_sent_ahead(row.aggregate, topic) {
            return Offer::Wait;
        }
        self.held.topics.put_among_others(topic);
        Offer::Aside(self.put_aside(row, HoldReason::Topic(OTHERS.clone())))
    }

    /// Rows that wait to hear of their topic.
    pub fn asking(&self) -> usize {
        self.asking.tickets.len()
    }

    /// Rows that may be in Kafka and are not resolved, by their ids; the simulator's are numbers.
    #[cfg(test)]
    pub fn ids_handed_over(&self) -> impl Iterator<Item = u32> + '_ {
        let entries = self.entries.iter();
        let handed_over = entries.filter(|(_, entry)| entry.state != State::Asking);
        handed_over.filter_map(|(_, entry)| entry.id.to_string().parse().ok())
    }

    /// The first of them.
    pub fn oldest_asking(&self) -> Option<Ticket> {
        self.asking.tickets.front().copied()
    }

    /// Nobody waits any longer: rows whose topic is not known by now are put aside until it is.
    pub fn give_up_asking(&mut self) {
        self.asking.is_given_up = true;
        self.asking.is_answered = true;
    }

    /// Drops the rows that wait: a source hands them out again.
    pub(super) fn drop_asking(&mut self) {
        self.forget_all_in(State::Asking);
        self.asking = Asking::default();
    }

    /// Takes what was found out about a topic; `true` when a paused topic can be written again.
    pub fn topic(&mut self, topic: &Arc<str>, state: &TopicState) -> bool {
        self.asking.heard();
        self.held.topics.learn(topic, state)
    }

    /// A turn of 2 s has passed: held topics are asked for again, less and less often, and others for their partitions.
    ///
    /// `true` when rows that are held among others are to be looked at again.
    pub fn pass_turn_of_topics(&mut self) -> bool {
        // What fills the window may wait for a leader.
        if self.is_stuck() {
            self.held.topics.ask_for_all();
        }
        self.held.topics.pass_turn()
    }

    /// Asks again for topics of which nobody has said anything yet: another producer is to be asked.
    pub fn ask_again(&mut self) {
        self.held.topics.ask_again();
    }

    /// Takes the topics that are to be asked for.
    pub fn take_questions(&mut self) -> Questions {
        self.held.topics.take_questions()
    }

    /// Takes the rows whose wait is over, in publishing order; `place` says where a row would go by now.
    pub fn take_answered(
        &mut self,
        place: impl Fn(Ticket) -> Option<Arc<str>>,
    ) -> Vec<(Ticket, Answered)> {
        if !self.asking.is_answered || self.suspects.is_one_alone() {
            return Vec::new();
        }
        self.asking.is_answered = false;
        self.asking.awaits_delivery = false;
        let mut answered = Vec::new();
        let mut stuck = HashSet::<Aggregate, ByAggregate>::default();
        for ticket in std::mem::take(&mut self.asking.tickets) {
            let Some(entry) = self.entries.get(ticket) else {
                continue;
            };
            let (aggregate, seq) = (entry.aggregate, entry.seq);
            let topic = place(ticket).or_else(|| entry.topic.clone());
            let answer = match topic {
                Some(topic) if !stuck.contains(&aggregate) => self.answer(aggregate, seq, &topic),
                _ => TopicAnswer::Asked,
            };
            match answer {
                TopicAnswer::Available => {
                    self.send(ticket);
                    answered.push((ticket, Answered::Publish));
                }
                TopicAnswer::Held(name) => {
                    self.put_waiting_aside(ticket, name);
                    answered.push((ticket, Answered::Aside));
                }
                TopicAnswer::Asked => {
                    stuck.insert(aggregate);
                    self.asking.tickets.push_back(ticket);
                }
            }
        }
        self.asking.is_given_up &= self.held.topics.asked() > 0;
        answered
    }

    /// Where a row stands that waits, behind what is ahead of it in its aggregate.
    fn answer(&mut self, aggregate: Aggregate, seq: Option<i64>, topic: &Arc<str>) -> TopicAnswer {
        if let Some(ahead) = self.held.topics.behind(aggregate, seq) {
            if self.has_sent_ahead(aggregate, topic) {
                self.asking.awaits_delivery = true;
                return TopicAnswer::Asked;
            }
            return TopicAnswer::Held(ahead);
        }
        match self.held.topics.answer(topic) {
            TopicAnswer::Asked if self.asking.is_given_up => {
                self.held.topics.put_among_others(topic);
                TopicAnswer::Held(OTHERS.clone())
            }
            answer => answer,
        }
    }

    fn send(&mut self, ticket: Ticket) {
        let Some(entry) = self.entries.get_mut(ticket) else {
            return;
        };
        self.asking.left(entry);
        entry.state = State::Sent;
        self.sent += 1;
        self.sent_bytes += entry.bytes;
    }

    fn put_waiting_aside(&mut self, ticket: Ticket, topic: Arc<str>) {
        let Some(entry) = self.entries.get_mut(ticket) else {
            return;
        };
        self.asking.left(entry);
        entry.state = State::Aside;
        entry.topic = None;
        self.held
            .topics
            .put_behind(entry.aggregate, entry.seq, &topic, 1);
        self.aside.push(HeldRow {
            ticket,
            seq: entry.seq,
            id: entry.id.clone(),
            lsn: entry.lsn,
            origin: entry.origin,
            why: HoldReason::Topic(topic),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Faults, Recorded, ReleaseOn};
    use super::*;
    use crate::config::FaultPolicy;
    use crate::row::{Lsn, Origin, RowId};

    const FOUND: TopicState = TopicState::Available { partitions: 1 };
    const ROWS_MAX: usize = 100;

    fn core() -> Core {
        let window = Window {
            rows_max: ROWS_MAX,
            bytes_max: 1_000_000,
        };
        let faults = Faults {
            policy: FaultPolicy::Block,
            halt_share: 0.5,
        };
        let mut core = Core::new(window, ReleaseOn::OnMark, faults);
        core.restore(Recorded::default());
        core.topic(&name("known"), &FOUND);
        core
    }

    fn name(topic: &str) -> Arc<str> {
        topic.into()
    }

    fn offer(core: &mut Core, seq: i64, aggregate: u64, topic: &str) -> Offer {
        let row = RowFacts {
            seq: Some(seq),
            id: RowId::Text(seq.to_string().into()),
            lsn: Lsn(0),
            origin: Origin::Unknown,
            bytes: 1,
            aggregate: Aggregate(aggregate),
            aggregate_type: b"t",
            is_whole: true,
        };
        core.offer(&row, Ok(&name(topic)))
    }

    fn answered(core: &mut Core) -> Vec<(Ticket, Answered)> {
        core.take_answered(|_| None)
    }

    #[test]
    fn rows_of_known_topics_pass_one_that_waits_and_its_followers_do_not() {
        let mut core = core();
        assert_eq!(offer(&mut core, 1, 1, "new"), Offer::Ask(0));
        assert_eq!(offer(&mut core, 2, 2, "known"), Offer::Publish(1));
        assert_eq!(offer(&mut core, 3, 1, "known"), Offer::Ask(2));
        assert_eq!(core.take_questions().usual, [name("new")]);
        assert!(answered(&mut core).is_empty());
        assert!(!core.topic(&name("new"), &FOUND));
        let publish = [0, 2].map(|ticket| (ticket, Answered::Publish));
        assert_eq!(answered(&mut core), publish);
        assert_eq!((core.asking(), core.sent()), (0, 3));
    }

    #[test]
    fn an_aggregate_waits_behind_its_row_whose_topic_is_missing() {
        let mut core = core();
        assert_eq!(offer(&mut core, 1, 1, "new"), Offer::Ask(0));
        assert_eq!(offer(&mut core, 2, 1, "known"), Offer::Ask(1));
        core.topic(&name("new"), &TopicState::Unknown);
        let aside = [0, 1].map(|ticket| (ticket, Answered::Aside));
        assert_eq!(answered(&mut core), aside);
        assert_eq!(offer(&mut core, 3, 1, "known"), Offer::Aside(2));
        assert_eq!(offer(&mut core, 4, 2, "known"), Offer::Publish(3));
        assert_eq!(core.held().topic_hold("new").map(|hold| hold.rows), Some(3));
        assert!(core.topic(&name("new"), &FOUND), "its rows can go out");
    }

    #[test]
    fn many_rows_of_one_new_topic_wait_and_none_is_put_aside() {
        let mut core = core();
        let most = ROWS_MAX / SHARE;
        for seq in 0..most as i64 {
            assert!(matches!(offer(&mut core, seq, 1, "new"), Offer::Ask(_)));
        }
        assert_eq!(offer(&mut core, 99, 99, "new"), Offer::Wait);
        core.give_up_asking();
        assert_eq!(answered(&mut core).len(), most);
        assert!(matches!(offer(&mut core, 99, 99, "new"), Offer::Aside(_)));
        assert!(core.topic(&name("new"), &FOUND), "they are to be released");
        let mut released = core.held().to_release();
        assert!(released.any(|topic| **topic == **OTHERS));
    }

    #[test]
    fn rows_of_very_many_topics_are_held_together_and_known_ones_pass() {
        let mut core = core();
        let keep = |core: &mut Core| {
            let asides = core.take_aside();
            core.kept(&asides);
        };
        let unknown = 400_u64;
        for number in 0..unknown {
            let topic = format!("new-{number}");
            let offered = offer(&mut core, number as i64, number, &topic);
            assert!(matches!(offered, Offer::Ask(_) | Offer::Aside(_)));
            keep(&mut core);
            let passes = offer(&mut core, 1_000 + number as i64, 1_000 + number, "known");
            let Offer::Publish(ticket) = passes else {
                panic!("{number}: {passes:?}");
            };
            core.delivered(&[ticket]);
            let delivered = core.take_delivered(super::super::MarkSelection::All);
            core.marked(&delivered);
        }
        for topic in core.take_questions().usual {
            assert!(!core.topic(&topic, &TopicState::Unknown));
        }
        answered(&mut core);
        keep(&mut core);
        let held = core.held();
        let by_name = held.topics().count();
        assert!(by_name <= 101, "{by_name}");
        assert!(held.topics_among_others() as u64 + by_name as u64 >= unknown);
        assert_eq!(held.rows(), unknown);
    }

    #[test]
    fn a_topic_is_asked_for_less_and_less_often_and_one_that_is_lost_at_once() {
        let mut core = core();
        offer(&mut core, 1, 1, "new");
        core.topic(&name("new"), &TopicState::Unknown);
        core.take_questions();
        let mut asked = Vec::new();
        for turn in 1..60 {
            core.pass_turn_of_topics();
            if core.take_questions().usual.contains(&name("new")) {
                asked.push(turn);
            }
        }
        assert_eq!(asked, [1, 3, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57]);
    }
}
