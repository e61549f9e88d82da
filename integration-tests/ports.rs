//! A wrong port or protocol: who answers there is named in plain words.

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::harness::workspace;
use crate::orders::{Orders, wait_for_status};

/// By another name than that of the database's URL: one address for both is refused.
fn brokers(config: &RelayConfig, port: u16) -> RelayConfig {
    let brokers = toml_edit::Array::from_iter([format!("localhost:{port}")]);
    let config = config.clone().set("kafka.brokers", brokers);
    config.kafka_property("broker.address.family", "v4")
}

/// What `check` says of Kafka.
fn check(config: &RelayConfig) -> String {
    let done = config.outboxd(&["check"]);
    assert_eq!(done.status.code(), Some(1), "{}", said(&done));
    said(&done)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_answers_in_a_brokers_place_is_named() {
    let (port, controller) = (workspace::free_port(), workspace::free_port());
    let mut kafka = Kafka::prepare(port, controller, &[]);
    kafka.restart();
    let postgres = Postgres::shared(USUAL).await;
    let orders = Orders::on(&kafka, postgres, "ports").await;
    let config = &orders.config;
    config.migrate();
    let relay = Relay::start(config);
    wait_for_status(&relay, "it runs", |status| status["state"] == "publishing").await;
    let web: u16 = relay.admin_port();
    for (port, word) in [
        (web, "a web server"),
        (postgres.port, "PostgreSQL"),
        (controller, "a controller"),
    ] {
        let text = check(&brokers(config, port));
        assert!(text.contains(word), "{text}");
        assert!(text.contains(&format!("localhost:{port}")), "{text}");
        assert!(!text.contains("receive.message.max.bytes"), "{text}");
    }
    let encrypted = config.clone().kafka_property("security.protocol", "SSL");
    let text = check(&encrypted);
    assert!(text.contains("does not speak TLS"), "{text}");
    drop(relay);

    let wrong = Relay::start(&brokers(config, postgres.port));
    orders.insert(1).await;
    wait_for_status(&wrong, "PostgreSQL is named", |status| {
        let error = status["kafka"]["error"].as_str().unwrap_or_default();
        error.contains("what answers is PostgreSQL")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_in_the_place_of_postgresql_is_named() {
    let kafka = Kafka::shared().await;
    let port = kafka.brokers();
    let port = port.rsplit(':').next().expect("a port");
    let nobody = workspace::free_port();
    for parameters in ["", "?sslmode=require", "?sslmode=disable"] {
        let url = format!("postgres://u@127.0.0.1:{port}/d{parameters}");
        let config = RelayConfig::of("ports", &url, &format!("127.0.0.1:{nobody}"));
        let text = check(&config);
        assert!(text.contains("is it PostgreSQL?"), "{parameters}: {text}");
    }
    let both = RelayConfig::of(
        "ports",
        &format!("postgres://u@127.0.0.1:{port}/d"),
        &kafka.brokers(),
    );
    let done = both.outboxd(&["check"]);
    assert_eq!(done.status.code(), Some(2), "{}", said(&done));
    assert!(
        said(&done).contains("`kafka.brokers` names too"),
        "{}",
        said(&done)
    );
}
