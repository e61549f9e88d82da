//! Every way of proving who we are carries rows, and the demo's too.

use super::broker::{PASSWORD, Secured, USER};
use super::secrets::{from_file, secret};
use super::tokens::{CLIENT_SECRET, Tokens};
use super::{LONG, orders};
use crate::harness::relay::{Relay, RelayConfig, outboxd, said};

/// Publishes, creates a topic, and `check` finds nothing wrong.
async fn carries_rows(
    secured: &Secured,
    prefix: &str,
    secure: impl FnOnce(RelayConfig) -> RelayConfig,
) {
    let orders = orders(secured, prefix, |config| {
        secure(config.set("kafka.topics.create", true))
    })
    .await;
    let checked = orders.config.outboxd(&["check"]);
    assert!(
        checked.status.success() && said(&checked).contains(" answers"),
        "{}",
        said(&checked)
    );
    let _relay = Relay::start(&orders.config);
    let ids = orders.insert(20).await;
    orders.wait_for(&ids).await;
    orders
        .run("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('invoice', 'a', 'sent', '{}')")
        .await;
    orders.wait_until_marked().await;
    let created = secured.kafka.read_topic(&orders.config.topic_of("invoice"));
    assert_eq!(created.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_flow_by_every_way_of_authentication() {
    let secured = Secured::shared().await;
    let provider = secured.sign("provider", &["127.0.0.1"]);
    let tokens = Tokens::start_with_tls(LONG, &provider);
    let password = secret("password", &format!("{PASSWORD}\n"));
    let client_secret = secret("client-secret", CLIENT_SECRET);
    let client = secured.sign("relay", &[]);
    let certificate = secret("client.pem", &client.certificate_pem());
    let key = secret("client.key", &client.key_pem());
    let by_password = |mechanism: &'static str| {
        let password = from_file(&password);
        move |config| secured.by_password(config, mechanism, USER, &password)
    };
    let by_token = |config| {
        secured
            .by_token(config, &tokens, &from_file(&client_secret))
            .kafka_property("sasl.oauthbearer.scope", "kafka")
            .kafka_property("https.ca.location", secured.ca.to_str().unwrap())
    };
    let by_certificate = |config| secured.by_certificate(config, &certificate, &key);
    tokio::join!(
        carries_rows(secured, "plain", by_password("PLAIN")),
        carries_rows(secured, "scram256", by_password("SCRAM-SHA-256")),
        carries_rows(secured, "scram512", by_password("SCRAM-SHA-512")),
        carries_rows(secured, "oidc", by_token),
        carries_rows(secured, "mutual", by_certificate),
    );
}

/// Topic, reader and relay of the demo are clients of the same broker.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_publishes_to_a_secured_broker() {
    let secured = Secured::shared().await;
    let brokers = secured.sasl_at("127.0.0.1");
    let ca = format!("ssl.ca.location={}", secured.ca.display());
    let password = secret("password", PASSWORD);
    let password = format!("sasl.password={}", from_file(&password));
    let user = format!("sasl.username={USER}");
    let properties = [
        "security.protocol=SASL_SSL",
        "sasl.mechanism=PLAIN",
        &user,
        &password,
        &ca,
    ];
    let mut arguments = vec![
        "demo",
        "--seconds",
        "1",
        "--kills",
        "1",
        "--brokers",
        &brokers,
    ];
    for property in &properties {
        arguments.extend(["--kafka-property", property]);
    }
    let done = outboxd(&arguments);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("PASS"), "{}", said(&done));
}
