//! Single facts of the core; what holds after every schedule is shown by the simulator.

use super::*;
use crate::core::TopicState;
use crate::encode::RejectionReason;
use crate::row::{Origin, OutboxRow};
use crate::simulator::event::{Event, Flaw, layout, topic};

const WINDOW_ROWS: usize = 16;

fn core(settling: ReleaseOn) -> Core {
    let window = Window {
        rows_max: WINDOW_ROWS,
        bytes_max: 1_000,
    };
    let policy = FaultPolicy::Block;
    let faults = Faults {
        policy,
        halt_share: 0.5,
    };
    let mut core = Core::new(window, settling, faults);
    core.topic(topic(0), &TopicState::Available { partitions: 1 });
    core
}

/// The row with this number; every third is of the same aggregate.
fn row(number: u32) -> OutboxRow {
    let event = Event {
        id: number,
        seq: i64::from(number),
        aggregate: Some(number as usize % 3),
        flaw: Flaw::None,
        xid: number,
        version: 0,
    };
    event.row(u64::from(number))
}

fn offer(core: &mut Core, number: u32) -> Offer {
    core.offer(&RowFacts::of(&layout(), &row(number)), Ok(topic(0)))
}

fn reject(core: &mut Core, number: u32) -> Offer {
    let rejection = Rejection {
        reason: RejectionReason::NullKey,
        text: "no key".to_owned(),
    };
    core.offer(&RowFacts::of(&layout(), &row(number)), Err(&rejection))
}

fn keep(core: &mut Core) {
    let asides = core.take_aside();
    core.kept(&asides);
}

#[test]
fn a_rows_followers_wait_while_other_aggregates_flow() {
    let mut core = core(ReleaseOn::OnMark);
    assert!(matches!(reject(&mut core, 3), Offer::AtFault { .. }));
    assert!(matches!(offer(&mut core, 4), Offer::Publish(_)));
    assert!(matches!(offer(&mut core, 6), Offer::Aside(_)));
    core.boundary(Lsn(7));
    core.delivered(&[1]);
    let delivered = core.take_delivered(MarkSelection::All);
    core.marked(&delivered);
    assert_eq!(core.confirmable(), None, "a held row is not recorded yet");
    keep(&mut core);
    assert_eq!(core.confirmable(), Some(Lsn(7)));
}

#[test]
fn a_row_at_fault_waits_for_the_rows_of_its_aggregate_ahead_of_it() {
    let mut core = core(ReleaseOn::OnMark);
    assert_eq!(offer(&mut core, 3), Offer::Publish(0));
    assert_eq!(reject(&mut core, 6), Offer::Wait);
    assert!(matches!(reject(&mut core, 7), Offer::AtFault { .. }));
    core.delivered(&[0]);
    assert!(matches!(reject(&mut core, 6), Offer::AtFault { .. }));
}

#[test]
fn a_lost_connection_repeats_nothing_that_is_in_flight() {
    let mut core = core(ReleaseOn::OnMark);
    (1..=10).for_each(|number| drop(offer(&mut core, number)));
    core.delivered(&[0, 1, 2]);
    core.source_ended();
    assert!((1..=10).all(|number| core.was_in_flight(&row(number))));
    assert!(!core.was_in_flight(&row(11)));
}

#[test]
fn a_row_that_was_changed_while_it_was_in_flight_is_sent_again() {
    let paged = |number, xid| {
        let mut paged = row(number);
        paged.origin = Origin::Table { xmin: xid };
        paged
    };
    let mut core = core(ReleaseOn::OnMark);
    core.offer(&RowFacts::of(&layout(), &paged(1, 7)), Ok(topic(0)));
    core.source_ended();
    assert!(core.was_in_flight(&paged(1, 7)) && core.was_in_flight(&row(1)));
    assert!(!core.was_in_flight(&paged(1, 8)));
}

#[test]
fn what_was_put_aside_was_in_flight_and_not_sent() {
    let mut core = core(ReleaseOn::OnConfirmation);
    reject(&mut core, 1);
    offer(&mut core, 2);
    core.boundary(Lsn(3));
    keep(&mut core);
    core.source_ended();
    assert!(core.was_in_flight(&row(1)) && core.was_sent(&row(2)));
    assert!(
        !core.was_sent(&row(1)),
        "it would be lost when it is replayed"
    );
}

#[test]
fn rows_that_wait_for_their_confirmation_only_are_settled() {
    let mut core = core(ReleaseOn::OnConfirmation);
    (1..=2).for_each(|number| drop(offer(&mut core, number)));
    core.boundary(Lsn(3));
    core.delivered(&[1]);
    assert!(!core.is_settled());
    core.source_ended();
    core.delivered(&[0]);
    assert!(core.is_settled() && !core.is_empty());
}

#[test]
fn a_transaction_larger_than_the_window_passes_without_marks() {
    let mut core = core(ReleaseOn::OnConfirmation);
    for number in 1..=22 {
        let Offer::Publish(ticket) = offer(&mut core, number) else {
            panic!("row {number} has no room");
        };
        core.delivered(&[ticket]);
    }
    core.boundary(Lsn(23));
    assert_eq!(core.confirmable(), Some(Lsn(23)));
}

#[test]
fn a_window_full_of_delivered_rows_is_not_stuck() {
    let mut core = core(ReleaseOn::OnMark);
    (1..=40).for_each(|number| drop(offer(&mut core, number)));
    assert!(core.is_stuck());
    core.delivered(&(0..16).collect::<Vec<_>>());
    assert_eq!(core.rows(), WINDOW_ROWS);
    assert!(!core.is_stuck(), "nobody marks while the slot is left");
}

#[test]
fn rows_are_marked_in_order_until_most_stand_behind_one_that_is_not_acknowledged() {
    let mut core = core(ReleaseOn::OnMark);
    (1..=6).for_each(|number| drop(offer(&mut core, number)));
    core.delivered(&[4, 5, 0, 2, 1]);
    let mut take = |extent| -> Vec<_> {
        let rows = core.take_delivered(extent);
        rows.iter().map(|row| row.ticket).collect()
    };
    assert_eq!(take(MarkSelection::InOrder), [0, 1, 2]);
    assert!(take(MarkSelection::InOrder).is_empty());
    assert_eq!(take(MarkSelection::All), [4, 5]);
}
