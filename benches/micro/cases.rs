//! The pieces that are measured; one round of each takes many rows through it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use bytes::BytesMut;
use outboxd::config::{FaultPolicy, Mark, NullKey, RouteConfig};
use outboxd::core::TopicState;
use outboxd::core::{Core, Delivered, Faults, MarkSelection, Offer, ReleaseOn, RowFacts, Window};
use outboxd::encode::Encoder;
use outboxd::mark::{FencingToken, Marks};
use outboxd::row::Lsn;
use outboxd::row::ranges::RangeSet;

use crate::messages;

/// As many rows as a mark often takes.
const ROWS: usize = 2_000;

/// One piece, made ready outside of what is measured.
pub struct Case {
    pub name: &'static str,
    /// Rows in a round.
    pub rows: usize,
    pub prepare: fn() -> Box<dyn FnMut()>,
}

pub const CASES: [Case; 5] = [
    Case {
        name: "decode",
        rows: ROWS,
        prepare: decode,
    },
    Case {
        name: "encode",
        rows: ROWS,
        prepare: encode,
    },
    Case {
        name: "core",
        rows: ROWS,
        prepare: core,
    },
    Case {
        name: "ledger ranges",
        rows: ROWS,
        prepare: ranges,
    },
    Case {
        name: "mark statement",
        rows: ROWS,
        prepare: statement,
    },
];

/// One-row transactions, from the bytes of each message on.
fn decode() -> Box<dyn FnMut()> {
    let mut decoder = messages::decoder();
    let transactions: Vec<BytesMut> = (1..=ROWS as u64).flat_map(messages::transaction).collect();
    Box::new(move || {
        for message in &transactions {
            let change = decoder.decode(message.clone());
            black_box(change.expect("the message is whole"));
        }
    })
}

fn encode() -> Box<dyn FnMut()> {
    let route = RouteConfig {
        topic: "outbox.event.${aggregatetype}".into(),
        allow: vec!["outbox.event.*".into()],
        null_key: NullKey::default(),
        headers: BTreeMap::new(),
    };
    let encoder = Encoder::new(&route, &messages::outbox().layout, 1_000_000);
    let encoder = encoder.expect("the table has the route's columns");
    let rows = messages::rows(ROWS as u64);
    Box::new(move || {
        for row in &rows {
            black_box(encoder.encode(row).expect("the row has no flaw"));
        }
    })
}

/// Each row is offered and delivered; all are marked together, and the last one's commit may be confirmed then.
fn core() -> Box<dyn FnMut()> {
    let window = Window {
        rows_max: 10_000,
        bytes_max: 32 << 20,
    };
    let faults = Faults {
        policy: FaultPolicy::Block,
        halt_share: 0.5,
    };
    let mut core = Core::new(window, ReleaseOn::OnMark, faults);
    let layout = messages::outbox().layout;
    let mut rows = messages::rows(ROWS as u64);
    let topic: Arc<str> = "outbox.event.order".into();
    core.topic(&topic, &TopicState::Available { partitions: 12 });
    let mut tickets = Vec::new();
    Box::new(move || {
        for row in &mut rows {
            row.lsn = Lsn(row.lsn.0 + messages::commit_lsn(ROWS as u64));
            assert!(!core.was_in_flight(row));
            match core.offer(&RowFacts::of(&layout, row), Ok(&topic)) {
                Offer::Publish(ticket) => tickets.push(ticket),
                other => unreachable!("nothing is in its way: {other:?}"),
            }
            core.boundary(Lsn(row.lsn.0 + 1));
        }
        core.delivered(&tickets);
        tickets.clear();
        let delivered = core.take_delivered(MarkSelection::All);
        core.marked(&delivered);
        assert_eq!(
            core.confirmable(),
            rows.last().map(|row| Lsn(row.lsn.0 + 1))
        );
    })
}

/// What a mark in the ledger is made of where every seventh number is missing.
fn ranges() -> Box<dyn FnMut()> {
    Box::new(|| {
        let mut sent = RangeSet::new();
        let numbers = (1..).filter(|number| number % 7 != 0);
        numbers.take(ROWS).for_each(|number| sent.insert(number));
        black_box(sent.to_multirange_text());
    })
}

fn statement() -> Box<dyn FnMut()> {
    let token = FencingToken {
        outbox: "public.outbox".into(),
        epoch: 1,
    };
    let marks = Marks::rows(Mark::SentAt, &messages::table(), token);
    let rows: Vec<Delivered> = messages::rows(ROWS as u64)
        .into_iter()
        .zip(0..)
        .map(|(row, ticket)| Delivered {
            ticket,
            seq: row.seq,
            id: row.id.expect("every row has an id"),
            lsn: row.lsn,
            origin: row.origin,
        })
        .collect();
    Box::new(move || {
        let statement = marks.statement(&rows, None);
        black_box(statement.and_then(|statement| statement.sql()));
    })
}
