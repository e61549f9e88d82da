//! Sessions against librdkafka's mock cluster: injected codes with one request in flight, brokers
//! that go away. Prefixes and duplicates belong to real Kafka: the mock checks no sequence numbers.

use std::collections::BTreeMap;

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::timeout;

use super::*;
use crate::config::TopicsConfig;
use crate::encode;

const PATIENCE: Duration = Duration::from_secs(60);
const LIMITS: LimitsConfig = LimitsConfig {
    in_flight_rows_max: 10_000,
    in_flight_bytes_max: 32 << 20,
};

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("orders", 1, 1).unwrap();
    cluster
}

fn kafka(brokers: String, properties: &[(&str, &str)]) -> KafkaConfig {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    KafkaConfig {
        brokers: vec![brokers],
        properties: properties.iter().map(own).collect::<BTreeMap<_, _>>(),
        allow_partitioner: false,
        topics: TopicsConfig {
            create: false,
            partitions: 1,
            replication_factor: 1,
        },
    }
}

fn start(cluster: &Cluster) -> (Publisher, UnboundedReceiver<PublisherEvent>) {
    Publisher::start(&kafka(cluster.bootstrap_servers(), &[]), &LIMITS).unwrap()
}

fn outgoing(ticket: Ticket, value: Option<Bytes>) -> Outgoing {
    let header = encode::Header {
        name: "id".into(),
        value: Some(ticket.to_string().into()),
    };
    Outgoing {
        ticket,
        record: Record {
            topic: "orders".into(),
            key: Some(Bytes::from_static(b"")),
            value,
            headers: vec![header],
        },
        partition: None,
    }
}

fn records(tickets: std::ops::Range<Ticket>) -> Vec<Outgoing> {
    tickets
        .map(|ticket| outgoing(ticket, Some(ticket.to_string().into())))
        .collect()
}

async fn next(events: &mut UnboundedReceiver<PublisherEvent>) -> PublisherEvent {
    timeout(PATIENCE, events.recv())
        .await
        .expect("an event in time")
        .expect("an open channel")
}

async fn delivered(events: &mut UnboundedReceiver<PublisherEvent>, rows: usize) -> Vec<Ticket> {
    let mut tickets = Vec::new();
    while tickets.len() < rows {
        match next(events).await {
            PublisherEvent::Delivered(more) => tickets.extend(more.tickets),
            other => panic!("{other:?}"),
        }
    }
    tickets
}

async fn ended(events: &mut UnboundedReceiver<PublisherEvent>) -> (Vec<Ticket>, SessionEnd) {
    let mut tickets = Vec::new();
    loop {
        match next(events).await {
            PublisherEvent::Delivered(more) => tickets.extend(more.tickets),
            PublisherEvent::Ended(end) => return (tickets, end),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn records_are_delivered_in_the_order_in_which_they_were_handed_over() {
    let cluster = cluster();
    let (publisher, mut events) = start(&cluster);
    publisher.publish(records(0..2_000));
    publisher.publish(records(2_000..3_000));
    let tickets = delivered(&mut events, 3_000).await;
    assert_eq!(tickets, (0..3_000).collect::<Vec<_>>());
    let end = publisher.end(PATIENCE).await;
    assert!(
        end.failed.is_empty() && end.reason.contains("0 records"),
        "{end:?}"
    );
}

#[tokio::test]
async fn keys_values_and_headers_arrive_as_they_are_null_and_empty_ones_apart() {
    let cluster = cluster();
    let (publisher, mut events) = start(&cluster);
    let mut keyless = outgoing(1, Some(Bytes::new()));
    keyless.record.key = None;
    keyless.record.headers[0].value = None;
    publisher.publish(vec![outgoing(0, None), keyless]);
    delivered(&mut events, 2).await;
    let brokers = cluster.bootstrap_servers();
    let read = tokio::task::spawn_blocking(move || {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("group.id", "test");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset("orders", 0, Offset::Beginning)
            .unwrap();
        consumer.assign(&from).unwrap();
        let read = || {
            let message = consumer.poll(PATIENCE).unwrap().unwrap().detach();
            let header = message.headers().unwrap().get(0).value.map(<[u8]>::to_vec);
            (
                message.key().map(<[u8]>::to_vec),
                message.payload().map(<[u8]>::to_vec),
                header,
            )
        };
        [read(), read()]
    });
    let [tombstone, keyless] = read.await.unwrap();
    assert_eq!(tombstone, (Some(vec![]), None, Some(b"0".to_vec())));
    assert_eq!(keyless, (None, Some(vec![]), None));
}

#[tokio::test]
async fn a_topic_that_exists_is_available_and_one_that_does_not_is_unknown_and_not_created() {
    let cluster = cluster();
    cluster
        .topic_error(
            "denied",
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        )
        .unwrap();
    let (publisher, mut events) = start(&cluster);
    let expected = [
        ("denied", TopicState::Denied),
        ("nothing", TopicState::Unknown),
        ("orders", TopicState::Available { partitions: 1 }),
    ];
    for _ in 0..2 {
        let names = expected.iter().map(|(name, _)| (*name).into());
        publisher.look_up(names.collect());
        // One request asks for all of them.
        let PublisherEvent::Topics(mut answers) = next(&mut events).await else {
            panic!("not an answer");
        };
        answers.sort_by(|(one, _), (other, _)| one.cmp(other));
        let answers: Vec<_> = answers
            .iter()
            .map(|(name, state)| (&**name, state.clone()))
            .collect();
        assert_eq!(answers, expected);
    }
}

#[tokio::test]
async fn a_look_up_is_answered_when_kafka_is_back_and_the_error_is_shown_meanwhile() {
    let cluster = cluster();
    cluster.broker_down(1).unwrap();
    let (publisher, mut events) = start(&cluster);
    let mut error = publisher.broker_error();
    publisher.look_up(vec!["orders".into()]);
    timeout(PATIENCE, error.wait_for(Option::is_some))
        .await
        .unwrap()
        .unwrap();
    cluster.broker_up(1).unwrap();
    assert!(matches!(next(&mut events).await, PublisherEvent::Topics(_)));
    timeout(PATIENCE, error.wait_for(Option::is_none))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_record_that_the_broker_refuses_ends_the_session_and_is_its_only_suspect() {
    let cluster = cluster();
    let (publisher, mut events) = start(&cluster);
    publisher.publish(records(0..1));
    delivered(&mut events, 1).await;
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large]);
    publisher.publish(records(1..2));
    let (tickets, end) = ended(&mut events).await;
    assert!(tickets.is_empty());
    assert!(matches!(&end.failed[..], [(1, Fault::Row(_))]), "{end:?}");
    // The session is over: nothing is sent, and its end is not told twice.
    publisher.publish(records(2..3));
    let end = publisher.end(PATIENCE).await;
    assert_eq!(
        (end.failed.len(), end.reason.as_str()),
        (0, "the session had ended")
    );
}

#[tokio::test]
async fn a_record_above_message_max_bytes_ends_the_session_after_what_stands_before_it() {
    let cluster = cluster();
    let small = kafka(
        cluster.bootstrap_servers(),
        &[("message.max.bytes", "2000")],
    );
    let (publisher, mut events) = Publisher::start(&small, &LIMITS).unwrap();
    let mut batch = records(0..100);
    batch.push(outgoing(100, Some(vec![b'x'; 3_000].into())));
    batch.extend(records(101..200));
    publisher.publish(batch);
    let (tickets, end) = ended(&mut events).await;
    assert_eq!(tickets, (0..100).collect::<Vec<_>>());
    assert!(matches!(&end.failed[..], [(100, Fault::Row(_))]), "{end:?}");
}

#[tokio::test]
async fn a_topic_that_takes_no_records_is_the_topics_fault() {
    let cluster = cluster();
    let (publisher, mut events) = start(&cluster);
    publisher.publish(records(0..1));
    delivered(&mut events, 1).await;
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::Produce, &[denied]);
    publisher.publish(records(1..2));
    let (_, end) = ended(&mut events).await;
    assert!(
        matches!(&end.failed[..], [(1, Fault::Topic(_) | Fault::NoTopic(_))]),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_full_queue_holds_records_back_and_loses_none() {
    let cluster = cluster();
    let narrow = [("queue.buffering.max.messages", "10")];
    let narrow = kafka(cluster.bootstrap_servers(), &narrow);
    let (publisher, mut events) = Publisher::start(&narrow, &LIMITS).unwrap();
    publisher.publish(records(0..500));
    assert_eq!(
        delivered(&mut events, 500).await,
        (0..500).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_broker_that_goes_away_and_comes_back_is_absorbed() {
    let cluster = cluster();
    let (publisher, mut events) = start(&cluster);
    publisher.publish(records(0..10));
    delivered(&mut events, 10).await;
    cluster.broker_down(1).unwrap();
    publisher.publish(records(10..20));
    timeout(PATIENCE, publisher.broker_error().wait_for(Option::is_some))
        .await
        .unwrap()
        .unwrap();
    cluster.broker_up(1).unwrap();
    assert_eq!(
        delivered(&mut events, 10).await,
        (10..20).collect::<Vec<_>>()
    );
    assert_eq!(publisher.end(PATIENCE).await.failed, []);
}

#[tokio::test]
async fn the_end_comes_by_its_deadline_when_the_broker_is_down() {
    let cluster = cluster();
    let (publisher, mut events) = start(&cluster);
    publisher.publish(records(0..1));
    delivered(&mut events, 1).await;
    cluster.broker_down(1).unwrap();
    publisher.publish(records(1..11));
    let deadline = Duration::from_millis(500);
    let end = timeout(PATIENCE, publisher.end(deadline)).await.unwrap();
    assert!(
        end.failed.is_empty() && end.reason.contains("10 records"),
        "{end:?}"
    );
    assert!(timeout(PATIENCE, events.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_session_starts_and_ends_without_any_kafka() {
    let (publisher, _events) =
        Publisher::start(&kafka("127.0.0.1:1".into(), &[]), &LIMITS).unwrap();
    publisher.look_up(vec!["orders".into()]);
    publisher.publish(records(0..5));
    let mut error = publisher.broker_error();
    let shown = timeout(PATIENCE, error.wait_for(Option::is_some))
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert!(shown.unwrap().contains("refused"));
    assert!(publisher.end(Duration::ZERO).await.failed.is_empty());
}
