//! What a real broker can't be made to answer: the relay on librdkafka's mock cluster, which answers as it is told.
//!
//! The mock checks no sequence numbers, so an answer is injected with one request in flight: prefixes and duplicates
//! belong to real Kafka.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey::Produce;
use rdkafka::types::RDKafkaRespErr::{self, *};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig};
use crate::harness::{SOON, wait_until};
use crate::orders::{ARRIVAL, Orders, wait_for_status};

type Cluster = MockCluster<'static, DefaultProducerContext>;

/// A relay that has published its first rows to mock brokers.
struct Scene {
    cluster: Cluster,
    orders: Orders,
    relay: Relay,
    ids: Vec<Uuid>,
}

/// Starts it with a topic of one partition on so many brokers.
async fn running(
    prefix: &str,
    brokers: i32,
    change: impl FnOnce(RelayConfig) -> RelayConfig,
) -> Scene {
    let cluster = MockCluster::new(brokers).expect("a mock cluster");
    let create = async |topic: &str| {
        let created = cluster.create_topic(topic, 1, brokers);
        created.expect("create a topic");
    };
    let servers = cluster.bootstrap_servers();
    let postgres = Postgres::shared(USUAL).await;
    let mut orders = Orders::at(&servers, postgres, prefix, create).await;
    orders.config = change(orders.config);
    orders.config.migrate();
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(5).await;
    orders.wait_for(&ids).await;
    Scene {
        cluster,
        orders,
        relay,
        ids,
    }
}

/// The first record of every row, in the order of the log.
fn first_occurrences(orders: &Orders) -> Vec<Uuid> {
    let mut firsts = Vec::new();
    for id in orders.published() {
        if !firsts.contains(&id) {
            firsts.push(id);
        }
    }
    firsts
}

async fn assert_in_order(orders: &Orders, ids: &[Uuid]) {
    orders.wait_for(ids).await;
    assert_eq!(first_occurrences(orders), ids);
}

async fn assert_nothing_is_held(relay: &Relay) {
    let status = relay.status().await;
    assert_eq!(status["held"], Value::Array(Vec::new()), "{status}");
    assert_eq!(status["held_topics"], Value::Array(Vec::new()), "{status}");
}

/// Whatever the broker no longer knows of a producer, the next one goes on where it stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_the_broker_disowns_is_followed_by_another_and_order_is_kept() {
    let Scene {
        cluster,
        orders,
        relay,
        mut ids,
    } = running("disowned", 1, |config| config).await;
    for code in [
        RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
        RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        RD_KAFKA_RESP_ERR_PRODUCER_FENCED,
        RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING,
    ] {
        cluster.request_errors(Produce, &[code]);
        ids.extend(orders.insert(5).await);
        assert_in_order(&orders, &ids).await;
    }
    assert_nothing_is_held(&relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_replicas_and_a_broken_store_are_waited_for_and_condemn_no_row() {
    let Scene {
        cluster,
        orders,
        relay,
        mut ids,
    } = running("too_few", 1, |config| config).await;
    cluster.request_errors(
        Produce,
        &[
            RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
            RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
            RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        ],
    );
    ids.extend(orders.insert(5).await);
    assert_in_order(&orders, &ids).await;
    assert_nothing_is_held(&relay).await;
    assert!(!relay.log().contains("trying again"), "{}", relay.log());
}

/// As long as it lasts, in `/status` and in the log.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_are_away_are_named_while_rows_wait_for_them() {
    for code in [
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    ] {
        let Scene {
            cluster,
            orders,
            relay,
            mut ids,
        } = running("replicas", 1, |config| config).await;
        cluster.request_errors(Produce, &[code; 1000]);
        ids.extend(orders.insert(5).await);
        let named = "NotEnoughReplicas: fewer replicas are in sync than `min.insync.replicas`";
        wait_for_status(&relay, "what the broker lacks", |status| {
            status["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains(named))
        })
        .await;
        relay.wait_for_log(named, SOON).await;
        cluster.clear_request_errors(Produce);
        assert_in_order(&orders, &ids).await;
        wait_for_status(&relay, "nothing of it", |status| status["reason"] == "").await;
        assert_nothing_is_held(&relay).await;
    }
}

/// Nobody knows whether the row or the cluster is at fault, so the row is not condemned, but everybody is told of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_draws_an_unknown_error_again_and_again_is_named_and_not_condemned() {
    let Scene {
        cluster,
        orders,
        relay,
        mut ids,
    } = running("unknown_error", 1, |config| config).await;
    cluster.request_errors(Produce, &[RD_KAFKA_RESP_ERR_UNKNOWN; 100]);
    ids.extend(orders.insert(5).await);
    let first = ids[5].to_string();
    wait_for_status(&relay, "which row it is", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        reason.contains("again and again") && reason.contains(&first)
    })
    .await;
    assert_nothing_is_held(&relay).await;
    cluster.clear_request_errors(Produce);
    assert_in_order(&orders, &ids).await;
}

/// Leaders move faster than anybody can follow, and for a moment the topic is gone from the metadata.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_move_and_a_topic_that_vanishes_for_a_moment_change_no_order() {
    let Scene {
        cluster,
        orders,
        relay,
        mut ids,
    } = running("leaders", 3, |config| config).await;
    let topic = orders.config.topic_of("order");
    for round in 0..30 {
        cluster
            .partition_leader(&topic, 0, Some(1 + round % 3))
            .unwrap();
        ids.extend(orders.insert(20).await);
        if round == 10 {
            set_topic_error(&cluster, &topic, RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        }
        if round == 20 {
            set_topic_error(&cluster, &topic, RD_KAFKA_RESP_ERR_NO_ERROR);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_in_order(&orders, &ids).await;
    assert_nothing_is_held(&relay).await;
}

fn set_topic_error(cluster: &Cluster, topic: &str, error: RDKafkaRespErr) {
    cluster
        .topic_error(topic, error)
        .expect("set a topic's error");
}

/// Every answer takes two seconds; the window bounds what is out meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_broker_repeats_nothing_and_never_has_more_than_the_window() {
    let Scene {
        cluster,
        orders,
        relay,
        mut ids,
    } = running("slow", 1, |config| {
        config.set("limits.in_flight_rows_max", 100)
    })
    .await;
    cluster
        .broker_round_trip_time(1, Duration::from_secs(2))
        .unwrap();
    ids.extend(orders.insert(250).await);
    let rows = async || {
        relay
            .try_status()
            .map(|status| status["in_flight"]["rows"].as_i64())
    };
    wait_until("the window is full", ARRIVAL, async || {
        match rows().await? {
            Some(100) => Ok(()),
            rows => Err(format!("{rows:?}")),
        }
    })
    .await;
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}
