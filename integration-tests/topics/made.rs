//! Topics that the relay makes, may not make, or that somebody takes away.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::wait_until;
use crate::harness::workspace::free_port;
use crate::orders::{ARRIVAL, Orders, wait_for_status};

/// A session asks for all its topics so often.
const ALL_ASKED: Duration = Duration::from_secs(35);

async fn scene(prefix: &str, creates: bool) -> Orders {
    Orders::create(Postgres::shared(USUAL).await, prefix, |config| {
        config.set("kafka.topics.create", creates)
    })
    .await
}

/// Whether a topic is there; asking makes none.
fn exists(client: &ClientConfig, topic: &str) -> bool {
    let consumer: BaseConsumer = client.create().expect("a consumer");
    let metadata = consumer.fetch_metadata(None, ARRIVAL).expect("metadata");
    metadata.topics().iter().any(|known| known.name() == topic)
}

fn insert_of(kind: &str) -> String {
    format!(
        "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('{kind}', 'a', 'placed', '{{}}')"
    )
}

/// `order.line` and `order_line` are one name to the metrics of a broker, which refuses the second.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_the_brokers_do_not_create_is_said_once_with_their_words_and_by_check() {
    let kafka = Kafka::shared().await;
    let orders = scene("collide", true).await;
    kafka
        .create_topic(&orders.config.topic_of("order_line"), 1, &[])
        .await;
    let relay = Relay::start(&orders.config);
    orders.run(&insert_of("order.line")).await;
    let status = wait_for_status(&relay, "the topic is held", |status| {
        status["held_topics"][0]["rows"] == 1
    })
    .await;
    let held = &status["held_topics"][0];
    let (reason, command) = (held["reason"].to_string(), held["command"].to_string());
    assert!(reason.contains("collides with existing topic"), "{reason}");
    assert!(command.contains("fix what the brokers say"), "{command}");
    tokio::time::sleep(Duration::from_secs(12)).await;
    let told = relay.log().matches("topic can't be written").count();
    assert_eq!(told, 1, "{}", relay.log());
    let topic = orders.config.topic_of("order.line");
    let one = orders.config.clone().topic(&topic);
    let check = one.outboxd(&["check"]);
    assert!(!check.status.success(), "{}", said(&check));
    assert!(
        said(&check).contains("collides with existing topic"),
        "{}",
        said(&check)
    );
    let missing = one.topic(&orders.config.topic_of("order-line"));
    let check = missing.outboxd(&["check"]);
    assert!(
        said(&check).contains("the relay creates it"),
        "{}",
        said(&check)
    );
    assert!(!exists(
        &kafka.client(),
        &orders.config.topic_of("order-line")
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_created_again_for_a_row_and_not_before() {
    let kafka = Kafka::shared().await;
    let orders = scene("recreated", true).await;
    let topic = orders.config.topic_of("order");
    let relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(1).await).await;
    kafka.delete_topic(&topic).await;
    tokio::time::sleep(ALL_ASKED).await;
    assert!(!exists(&kafka.client(), &topic), "{}", relay.log());
    orders.insert(1).await;
    wait_until("the row is in a new topic", ARRIVAL, async || {
        match exists(&kafka.client(), &topic) && kafka.read_topic(&topic).len() == 1 {
            true => Ok(()),
            false => Err(relay.log()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_said_to_be_held_and_is_soon_back() {
    let kafka = Kafka::shared().await;
    let orders = scene("taken", false).await;
    let topic = orders.config.topic_of("order");
    let relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(1).await).await;
    kafka.delete_topic(&topic).await;
    orders.insert(1).await;
    relay.wait_for_log("topic can't be written", ARRIVAL).await;
    let status = wait_for_status(&relay, "why it is held", |status| {
        let held = &status["held_topics"][0];
        held["rows"] == 1 && held["reason"].to_string().contains("does not exist")
    })
    .await;
    let command = status["held_topics"][0]["command"].to_string();
    assert!(command.contains("--create"), "{command}");
    kafka.create_topic(&topic, 1, &[]).await;
    let made_at = std::time::Instant::now();
    wait_until("the row is there", ARRIVAL, async || {
        match kafka.read_topic(&topic).len() {
            1 => Ok(()),
            rows => Err(rows),
        }
    })
    .await;
    // It is asked for each ten seconds at least; a busy machine needs some more.
    assert!(
        made_at.elapsed() < Duration::from_secs(20),
        "{:?}",
        made_at.elapsed()
    );
}

/// The bootstrap address answers and names a broker that nobody can find: Kafka is not there, whatever answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_under_a_name_that_nobody_knows_is_away_until_something_is_acknowledged() {
    let [port, lost, controller] = std::array::from_fn(|_| free_port());
    let listeners = format!(
        "PLAINTEXT://127.0.0.1:{port},LOST://127.0.0.1:{lost},CONTROLLER://127.0.0.1:{controller}"
    );
    let advertised = format!("PLAINTEXT://127.0.0.1:{port},LOST://kafka.invalid:{lost}");
    let protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,LOST:PLAINTEXT";
    let extra = [
        ("listeners", listeners.as_str()),
        ("advertised.listeners", &advertised),
        ("listener.security.protocol.map", protocols),
    ];
    let mut kafka = Kafka::prepare(port, controller, &extra);
    kafka.restart();
    let mut orders = Orders::on(&kafka, Postgres::shared(USUAL).await, "advertised").await;
    let brokers = toml_edit::Array::from_iter([format!("127.0.0.1:{lost}")]);
    orders.config = orders.config.set("kafka.brokers", brokers);
    orders.config.migrate();
    let relay = Relay::start(&orders.config);
    orders.insert(3).await;
    relay.wait_for_log("Kafka does not answer", ARRIVAL).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let log = relay.log();
    assert!(!log.contains("Kafka answers again"), "{log}");
    let status = relay.status().await;
    assert_eq!(status["state"], "waiting", "{status}");
    assert_eq!(status["kafka"]["is_up"], false, "{status}");
}
