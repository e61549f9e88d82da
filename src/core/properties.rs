//! What holds after every schedule of offers, reports, marks, restarts and dead producers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const AGGREGATES: u64 = 5;
/// The row whose number is divisible by this is refused by the broker, always.
const POISON: u64 = 23;

#[derive(Clone, Debug)]
enum Step {
    /// Feed as many rows as the core takes, at most so many.
    Feed(usize),
    /// The broker acknowledges so many of what is in flight, in order.
    Acknowledge(usize),
    Mark,
    MarkFails,
    MarkLost,
    Keep,
    /// The rows are recorded as held, and the answer is lost.
    KeepLost,
    SourceRestarts,
    ProducerDies,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..40_usize).prop_map(Step::Feed),
        6 => (1..30_usize).prop_map(Step::Acknowledge),
        4 => Just(Step::Mark),
        1 => Just(Step::MarkFails),
        1 => Just(Step::MarkLost),
        4 => Just(Step::Keep),
        1 => Just(Step::KeepLost),
        1 => Just(Step::SourceRestarts),
        1 => Just(Step::ProducerDies),
    ]
}

/// A world around the core: a table of transactions, a broker's log, a ledger, a slot.
struct World {
    core: Core,
    /// (row number, its transaction's end), transactions of one to four rows.
    rows: Vec<(u64, u64)>,
    cursor: usize,
    flying: Vec<(Ticket, u64)>,
    log: Vec<u64>,
    marked: BTreeSet<u64>,
    /// Rows that are recorded as held, and the aggregates that are recorded as blocked.
    kept: BTreeSet<u64>,
    blocked: BTreeMap<Aggregate, HeldAggregate>,
    by_ticket: BTreeMap<Ticket, u64>,
    confirmed: u64,
    topic: Arc<str>,
}

impl World {
    fn new(settling: Settling, sizes: &[u64]) -> Self {
        let mut rows = Vec::new();
        let mut number = 1;
        for size in sizes {
            let end = number + size;
            rows.extend((number..end).map(|row| (row, end)));
            number = end;
        }
        let mut core = Core::new(
            Window {
                rows_max: 16,
                bytes_max: 1_000,
            },
            settling,
            Faults {
                policy: FaultPolicy::Block,
                halt_share: 0.5,
            },
        );
        let topic: Arc<str> = "orders".into();
        core.topic(&topic, &TopicState::Available { partitions: 1 });
        let (flying, log, by_ticket) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self {
            core,
            rows,
            cursor: 0,
            flying,
            log,
            marked: BTreeSet::new(),
            kept: BTreeSet::new(),
            blocked: BTreeMap::new(),
            by_ticket,
            confirmed: 0,
            topic,
        }
    }

    fn facts(number: u64) -> RowFacts<'static> {
        RowFacts {
            seq: Some(number as i64),
            id: RowId::Uuid(u128::from(number)),
            lsn: Lsn(number),
            bytes: 10,
            aggregate: Aggregate(number % AGGREGATES),
            aggregate_type: b"order",
            is_whole: true,
        }
    }

    fn is_known(&self, number: u64) -> bool {
        self.marked.contains(&number)
            || self.kept.contains(&number)
            || self.core.from_before.has_number(number as i64)
    }

    fn feed(&mut self, rows: usize) {
        for _ in 0..rows {
            let Some((number, end)) = self.rows.get(self.cursor).copied() else {
                return;
            };
            if !self.is_known(number) {
                match self
                    .core
                    .offer(&Self::facts(number), Ok(&self.topic.clone()))
                {
                    Offer::Publish(ticket) => {
                        self.flying.push((ticket, number));
                        self.by_ticket.insert(ticket, number);
                    }
                    Offer::Aside(ticket) | Offer::AtFault { ticket, .. } => {
                        self.by_ticket.insert(ticket, number);
                    }
                    Offer::Wait => return,
                    other => panic!("unexpected {other:?}"),
                }
            }
            self.cursor += 1;
            if self.rows.get(self.cursor).is_none_or(|next| next.1 != end) {
                self.core.boundary(Lsn(end));
            }
        }
    }

    fn acknowledge(&mut self, count: usize) {
        let mut delivered = Vec::new();
        for _ in 0..count.min(self.flying.len()) {
            if self.flying[0].1.is_multiple_of(POISON) {
                self.core.delivered(&delivered);
                return self.refuse();
            }
            let (ticket, number) = self.flying.remove(0);
            self.log.push(number);
            delivered.push(ticket);
        }
        self.core.delivered(&delivered);
    }

    /// The broker refuses the first record in flight: gapless, so nothing behind it is appended.
    fn refuse(&mut self) {
        let failed = vec![(self.flying[0].0, Fault::Row("too large".to_owned()))];
        self.producer_dies(failed);
    }

    fn producer_dies(&mut self, failed: Vec<(Ticket, Fault)>) {
        self.flying.clear();
        self.core.producer_ended(&SessionEnd {
            failed,
            reason: String::new(),
            batch_bytes_max: None,
        });
        self.restart();
    }

    fn mark(&mut self, outcome: &Step) {
        let rows = self.core.take_delivered();
        if !matches!(outcome, Step::MarkFails) {
            self.marked
                .extend(rows.iter().map(|row| self.by_ticket[&row.ticket]));
        }
        match outcome {
            Step::Mark => self.core.marked(&rows),
            _ => self.core.mark_failed(&rows),
        }
    }

    fn keep(&mut self, is_lost: bool) {
        let rows = self.core.take_aside();
        for row in &rows {
            let Fate::Blocked(aggregate) = row.fate else {
                panic!("unexpected {row:?}");
            };
            self.kept.insert(self.by_ticket[&row.ticket]);
            let held = self.core.held().aggregate(aggregate);
            let held = held.expect("a follower has a blocked aggregate").clone();
            self.blocked.insert(aggregate, held);
        }
        if is_lost {
            self.core.keep_failed(rows);
        } else {
            self.core.kept(&rows);
        }
    }

    /// The source starts again at the first transaction that is not confirmed.
    fn restart(&mut self) {
        self.core.source_ended();
        let aggregates = self.blocked.clone().into_iter().collect();
        let numbers = self.kept.iter().map(|row| *row as i64).collect();
        let topics = Vec::new();
        self.core.restore(Recorded {
            aggregates,
            topics,
            numbers,
            kept_bytes: 0,
        });
        let confirmed = self.confirmed;
        self.cursor = self
            .rows
            .iter()
            .position(|(_, end)| *end > confirmed)
            .unwrap_or(self.rows.len());
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Feed(rows) => self.feed(*rows),
            Step::Acknowledge(count) => self.acknowledge(*count),
            Step::Mark | Step::MarkFails | Step::MarkLost => self.mark(step),
            Step::Keep => self.keep(false),
            Step::KeepLost => self.keep(true),
            Step::SourceRestarts => self.restart(),
            Step::ProducerDies => self.producer_dies(Vec::new()),
        }
        if let Some(lsn) = self.core.confirmable() {
            self.confirmed = self.confirmed.max(lsn.0);
        }
    }

    /// Runs without faults until nothing moves any more.
    fn finish(&mut self) {
        for _ in 0..10 * self.rows.len() + 100 {
            self.apply(&Step::Feed(usize::MAX / 2));
            self.apply(&Step::Acknowledge(usize::MAX));
            self.apply(&Step::Mark);
            self.apply(&Step::Keep);
        }
    }

    /// A row behind the first refused row of its aggregate, or that row itself.
    fn is_held(&self, number: u64) -> bool {
        (1..=number)
            .any(|row| row.is_multiple_of(POISON) && row % AGGREGATES == number % AGGREGATES)
    }

    fn check_always(&self, settling: Settling) {
        let in_log: BTreeSet<_> = self.log.iter().copied().collect();
        for (number, end) in self
            .rows
            .iter()
            .take_while(|(_, end)| *end <= self.confirmed)
        {
            let is_sent = match settling {
                Settling::OnMark => self.marked.contains(number),
                Settling::OnConfirmation => in_log.contains(number),
            };
            assert!(
                is_sent || self.kept.contains(number),
                "row {number} was confirmed with its transaction {end} and not settled"
            );
        }
        assert!(
            self.marked.is_subset(&in_log),
            "a row was marked before it was in the log"
        );
        for number in self.kept.intersection(&in_log) {
            // Without marks a row that went out before the one at fault may come again, and waits behind it then.
            let is_repetition = settling == Settling::OnConfirmation && !self.is_held(*number);
            assert!(is_repetition, "row {number} is held and was published");
        }
        assert!(self.core.rows() <= 16, "the window overflowed");
        assert_eq!(self.core.sent(), self.flying.len());
    }

    fn check_order(&self) {
        let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for number in self.log.iter().filter(|number| seen.insert(**number)) {
            let last = newest.insert(number % AGGREGATES, *number).unwrap_or(0);
            assert!(
                last < *number,
                "first occurrence of {number} came after {last}"
            );
        }
    }
}

fn check(settling: Settling, sizes: &[u64], steps: &[Step]) {
    let mut world = World::new(settling, sizes);
    for step in steps {
        world.apply(step);
        world.check_always(settling);
    }
    world.finish();
    world.check_always(settling);
    world.check_order();
    let in_log: BTreeSet<_> = world.log.iter().copied().collect();
    for (number, _) in &world.rows {
        assert_eq!(
            in_log.contains(number),
            !world.is_held(*number),
            "row {number}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_reordered_or_confirmed_early_with_marks(
        sizes in prop::collection::vec(1..5_u64, 1..40),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        check(Settling::OnMark, &sizes, &steps);
    }

    #[test]
    fn nothing_is_lost_reordered_or_confirmed_early_without_marks(
        sizes in prop::collection::vec(1..5_u64, 1..40),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        check(Settling::OnConfirmation, &sizes, &steps);
    }
}

#[test]
fn a_rows_followers_wait_while_other_aggregates_flow() {
    let mut world = World::new(Settling::OnMark, &[1; 60]);
    world.finish();
    let held: Vec<_> = (1..=60)
        .filter(|number| !world.log.contains(number))
        .collect();
    assert_eq!(held, [23, 28, 33, 38, 43, 46, 48, 51, 53, 56, 58]);
    assert_eq!(world.kept, held.into_iter().collect());
    assert_eq!(world.confirmed, 61, "held rows do not stop the position");
}

#[test]
fn a_lost_connection_repeats_nothing_that_is_in_flight() {
    let mut world = World::new(Settling::OnMark, &[2; 8]);
    world.apply(&Step::Feed(10));
    world.apply(&Step::SourceRestarts);
    world.finish();
    assert_eq!(world.log, (1..=16).collect::<Vec<_>>());
}

#[test]
fn a_transaction_larger_than_the_window_passes_without_marks() {
    let mut world = World::new(Settling::OnConfirmation, &[22]);
    world.finish();
    assert_eq!(world.log.len(), 22);
    assert_eq!(world.confirmed, 23);
}

#[test]
fn a_window_full_of_delivered_rows_is_not_stuck() {
    let mut world = World::new(Settling::OnMark, &[1; 40]);
    world.apply(&Step::Feed(40));
    assert!(world.core.is_stuck());
    world.apply(&Step::Acknowledge(16));
    assert_eq!(world.core.rows(), 16);
    assert!(
        !world.core.is_stuck(),
        "nobody marks while the slot is left"
    );
}
