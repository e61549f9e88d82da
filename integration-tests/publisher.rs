//! The publisher against real Kafka, without the relay around it: prefixes, partitions, freezes, look-ups.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outboxd::config::{KafkaConfig, LimitsConfig, TopicsConfig};
use outboxd::core::{Fault, SessionEnd, Ticket, TopicState};
use outboxd::encode::{Header, Record};
use outboxd::publish::{Outgoing, Publisher, PublisherEvent};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::harness::SOON;
use crate::harness::kafka::Kafka;
use crate::harness::murmur2::partition_of;
use crate::harness::topic::Read;

/// A producer that says nothing for so long asks for its brokers again.
const SILENT: Duration = Duration::from_secs(5);
const LIMITS: LimitsConfig = LimitsConfig {
    in_flight_rows_max: 10_000,
    in_flight_bytes_max: 32 << 20,
};

/// Each record is a request of its own, so that the records behind the bad one are in flight when it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_leaves_a_prefix_and_is_the_only_suspect() {
    let kafka = Kafka::shared().await;
    for round in 0..5 {
        let topic = Kafka::unique_name("refused");
        kafka
            .create_topic(&topic, 1, &[("max.message.bytes", "2000")])
            .await;
        let settings = settings(kafka, &[("batch.num.messages", "1")]);
        let bad = 6 + round;
        let record = |ticket| {
            let bytes = if ticket == bad { 4_000 } else { 10 };
            outgoing(&topic, ticket, "key", bytes)
        };
        let (publisher, mut events) = Publisher::start(&settings, &LIMITS).unwrap();
        publisher.publish((0..40).map(record).collect());
        let (delivered, end) = ended(&mut events).await;
        let suspects: Vec<_> = end.failed.iter().map(|(ticket, _)| *ticket).collect();
        assert_eq!(suspects, [bad], "{end:?}");
        assert!(matches!(end.failed[0].1, Fault::Row(_)), "{end:?}");
        assert_eq!(
            tickets(&kafka.read_topic(&topic)),
            (0..bad).collect::<Vec<_>>()
        );
        assert_eq!(delivered, (0..bad).collect::<Vec<_>>());

        let (publisher, mut events) = Publisher::start(&settings, &LIMITS).unwrap();
        publisher.publish((bad + 1..40).map(record).collect());
        await_delivered(&mut events, (bad + 1..40).collect()).await;
        let expected: Vec<_> = (0..40).filter(|ticket| *ticket != bad).collect();
        assert_eq!(tickets(&kafka.read_topic(&topic)), expected);
    }
}

/// One bad record fails its whole request: nothing of it is in the log, and as its size may be what was refused, none
/// of it is suspected until requests are smaller.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_leaves_a_prefix_whatever_its_size() {
    let kafka = Kafka::shared().await;
    let topic = Kafka::unique_name("refused-request");
    kafka
        .create_topic(&topic, 1, &[("max.message.bytes", "20000")])
        .await;
    let record = |ticket| {
        let bytes = if ticket == 57 { 40_000 } else { 10 };
        outgoing(&topic, ticket, "key", bytes)
    };
    let (mut first, mut batch_bytes, mut ends) = (0, 1_000_000, 0);
    let suspects = loop {
        let bytes = batch_bytes.to_string();
        let properties = [("batch.num.messages", "10"), ("batch.size", &bytes)];
        let settings = settings(kafka, &properties);
        let (publisher, mut events) = Publisher::start(&settings, &LIMITS).unwrap();
        publisher.publish((first..200).map(record).collect());
        let (delivered, end) = ended(&mut events).await;
        let log = tickets(&kafka.read_topic(&topic));
        assert_eq!(log, (0..log.len() as Ticket).collect::<Vec<_>>());
        assert!(log.len() <= 57);
        assert!(delivered.iter().all(|ticket| log.contains(ticket)));
        ends += 1;
        first = log.len() as Ticket;
        match end.small_batches.get(&*topic) {
            Some(smaller) => batch_bytes = *smaller,
            None => break end.failed,
        }
    };
    let suspects: Vec<_> = suspects.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!((suspects, ends), (vec![57], 2));
}

/// A broker that does not know the producer would take what is behind: so nothing is behind, until it knows it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_overtakes_a_first_record_that_is_refused() {
    let kafka = Kafka::shared().await;
    let settings = settings(kafka, &[("batch.num.messages", "1"), ("linger.ms", "0")]);
    for _ in 0..5 {
        let topic = Kafka::unique_name("refused-first");
        kafka
            .create_topic(&topic, 1, &[("max.message.bytes", "2000")])
            .await;
        let record = |ticket| {
            let bytes = if ticket == 0 { 4_000 } else { 10 };
            let partition = Some(0);
            Outgoing {
                partition,
                ..outgoing(&topic, ticket, "key", bytes)
            }
        };
        let (publisher, mut events) = Publisher::start(&settings, &LIMITS).unwrap();
        publisher.publish((0..40).map(record).collect());
        let (delivered, end) = ended(&mut events).await;
        assert!(delivered.is_empty(), "{delivered:?}");
        assert!(matches!(end.failed[..], [(0, Fault::Row(_))]), "{end:?}");
        assert_eq!(kafka.read_topic(&topic), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_those_of_a_java_producer() {
    let kafka = Kafka::shared().await;
    let keys: Vec<String> = (0..300)
        .map(|number| match number % 3 {
            0 => format!("order-{number}"),
            1 => uuid::Uuid::new_v4().to_string(),
            _ => "é".repeat(number % 7),
        })
        .collect();
    for partitions in [1, 3, 7] {
        let topic = Kafka::unique_name("partitions");
        kafka.create_topic(&topic, partitions, &[]).await;
        let (publisher, mut events) = Publisher::start(&settings(kafka, &[]), &LIMITS).unwrap();
        let records = keys.iter().zip(0..);
        publisher.publish(
            records
                .map(|(key, ticket)| outgoing(&topic, ticket, key, 10))
                .collect(),
        );
        await_delivered(&mut events, (0..keys.len() as Ticket).collect()).await;
        let reads = kafka.read_topic(&topic);
        assert_eq!(reads.len(), keys.len());
        for read in reads {
            let key = read.key.as_deref().expect("an empty key is a key");
            assert_eq!(read.partition, partition_of(key, partitions), "{key:?}");
        }
    }
}

/// Longer than `socket.timeout.ms`: the requests in flight are sent again, and the broker knows them.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_makes_no_duplicates() {
    let mut kafka = Kafka::start();
    let topic = Kafka::unique_name("frozen");
    kafka.create_topic(&topic, 3, &[]).await;
    let (publisher, mut events) = Publisher::start(&settings(&kafka, &[]), &LIMITS).unwrap();
    let record = |ticket: Ticket| outgoing(&topic, ticket, &(ticket % 20).to_string(), 100);
    publisher.publish((0..100).map(record).collect());
    await_delivered(&mut events, (0..100).collect()).await;
    for ticket in (100..3_000).step_by(100) {
        publisher.publish((ticket..ticket + 100).map(record).collect());
        if ticket == 1_000 {
            kafka.freeze();
        }
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    kafka.thaw();
    let mut delivered = HashSet::new();
    while delivered.len() < 2_900 {
        match next_of_silent(&publisher, &mut events, &topic).await {
            PublisherEvent::Delivered(more) => delivered.extend(more.tickets),
            other => panic!("{other:?}"),
        }
    }
    let reads = kafka.read_topic(&topic);
    assert_eq!(reads.len(), 3_000);
    for partition in 0..3 {
        let own: Vec<_> = reads
            .iter()
            .filter(|read| read.partition == partition)
            .cloned()
            .collect();
        assert!(tickets(&own).is_sorted());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_unknown_until_it_is_created() {
    let kafka = Kafka::shared().await;
    let topic = Kafka::unique_name("looked-up");
    let (publisher, mut events) = Publisher::start(&settings(kafka, &[]), &LIMITS).unwrap();
    assert_eq!(
        look_up(&publisher, &mut events, &topic).await,
        TopicState::Unknown
    );
    kafka.create_topic(&topic, 5, &[]).await;
    let state = look_up(&publisher, &mut events, &topic).await;
    assert_eq!(state, TopicState::Available { partitions: 5 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_created_where_that_is_wished() {
    let kafka = Kafka::shared().await;
    let topic = Kafka::unique_name("requested");
    let mut settings = settings(kafka, &[]);
    settings.topics = TopicsConfig {
        create: true,
        partitions: 2,
        replication_factor: 1,
    };
    let (publisher, mut events) = Publisher::start(&settings, &LIMITS).unwrap();
    let state = look_up(&publisher, &mut events, &topic).await;
    assert_eq!(state, TopicState::Available { partitions: 2 });
    publisher.publish(
        (0..10)
            .map(|ticket| outgoing(&topic, ticket, "key", 10))
            .collect(),
    );
    await_delivered(&mut events, (0..10).collect()).await;
    assert_eq!(
        tickets(&kafka.read_topic(&topic)),
        (0..10).collect::<Vec<_>>()
    );
}

fn settings(kafka: &Kafka, properties: &[(&str, &str)]) -> KafkaConfig {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    KafkaConfig {
        brokers: vec![kafka.brokers()],
        properties: properties.iter().map(own).collect::<BTreeMap<_, _>>(),
        allow_partitioner: false,
        topics: TopicsConfig {
            create: false,
            partitions: 1,
            replication_factor: 1,
        },
    }
}

fn outgoing(topic: &str, ticket: Ticket, key: &str, bytes: usize) -> Outgoing {
    let header = Header {
        name: "id".into(),
        value: Some(ticket.to_string().into()),
    };
    Outgoing {
        ticket,
        record: Record {
            topic: topic.into(),
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: Some(vec![b'v'; bytes].into()),
            headers: vec![header],
        },
        partition: None,
    }
}

/// The tickets in the order of the log, which one partition has.
fn tickets(reads: &[Read]) -> Vec<Ticket> {
    let ticket = |read: &Read| read.header("id").unwrap().parse().unwrap();
    reads.iter().map(ticket).collect()
}

async fn next(events: &mut UnboundedReceiver<PublisherEvent>) -> PublisherEvent {
    let event = timeout(SOON, events.recv()).await;
    event.expect("an event in time").expect("an open channel")
}

/// The next event of a producer that may have lost all brokers while they were fenced: it is told of them, as the relay does.
async fn next_of_silent(
    publisher: &Publisher,
    events: &mut UnboundedReceiver<PublisherEvent>,
    topic: &str,
) -> PublisherEvent {
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        match timeout(SILENT, events.recv()).await {
            Ok(event) => return event.expect("an open channel"),
            Err(_) => publisher.refresh(topic.into()),
        }
    }
    panic!("no event in time");
}

async fn look_up(
    publisher: &Publisher,
    events: &mut UnboundedReceiver<PublisherEvent>,
    topic: &str,
) -> TopicState {
    publisher.look_up(vec![topic.into()]);
    match next(events).await {
        PublisherEvent::Topics(answers) => answers.into_iter().next_back().expect("an answer").1,
        other => panic!("{other:?}"),
    }
}

/// Waits for exactly these tickets, in this order in sum; panics at any other event.
async fn await_delivered(
    events: &mut UnboundedReceiver<PublisherEvent>,
    expected: HashSet<Ticket>,
) {
    let mut delivered = HashSet::new();
    while delivered.len() < expected.len() {
        match next(events).await {
            PublisherEvent::Delivered(more) => delivered.extend(more.tickets),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(delivered, expected);
}

/// Waits for the session's end; what was delivered before it, in order.
async fn ended(events: &mut UnboundedReceiver<PublisherEvent>) -> (Vec<Ticket>, SessionEnd) {
    let mut delivered = Vec::new();
    loop {
        match next(events).await {
            PublisherEvent::Delivered(more) => delivered.extend(more.tickets),
            PublisherEvent::Ended(end) => return (delivered, end),
            other => panic!("{other:?}"),
        }
    }
}
