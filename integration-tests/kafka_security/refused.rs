//! Who is refused says why and waits; what is mended goes on by itself, and no row is condemned.

use serde_json::Value;
use uuid::Uuid;

use super::broker::{PASSWORD, Secured, USER};
use super::secrets::{from_file, replace, secret};
use super::tokens::{CLIENT_SECRET, Tokens};
use super::{LONG, assert_once_and_in_order, orders, wait_for_refusal};
use crate::harness::certificates::{Identity, Signature, Subject};
use crate::harness::relay::{Relay, said};
use crate::harness::{SOON, wait_until, workspace};
use crate::orders::{Orders, wait_for_status};

/// Nothing goes out while a file is wrong; everything does, once, when it is mended, and no secret was logged.
async fn waits_until_mended(orders: &Orders, reason: &str, secrets: &[&str], mend: impl FnOnce()) {
    let checked = orders.config.outboxd(&["check"]);
    assert!(!checked.status.success(), "{}", said(&checked));
    assert!(
        said(&checked).to_lowercase().contains(reason),
        "{}",
        said(&checked)
    );
    let mut relay = Relay::start(&orders.config);
    let ids = orders.insert(20).await;
    wait_for_refusal(&relay, reason).await;
    mend();
    orders.wait_for(&ids).await;
    wait_for_status(&relay, "Kafka answers", |status| {
        status["kafka"]["is_up"] == true
    })
    .await;
    assert_eq!(orders.published().len(), 20);
    assert!(relay.is_running());
    let all = relay.log() + &relay.status().await.to_string() + &said(&checked);
    for secret in secrets {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_stops_everything_until_its_file_is_mended_and_condemns_no_row() {
    let secured = Secured::shared().await;
    let tokens = Tokens::start(LONG);
    let password = secret("password", "wrong-hush");
    let client_secret = secret("client-secret", "wrong-hush");
    let stranger = Identity::authority("a stranger", Signature::EcdsaSha256);
    let ca = secret("ca.pem", &stranger.certificate_pem());
    let strange = stranger.issue(&Subject::named("relay", &[]));
    let certificate = secret("client.pem", &strange.certificate_pem());
    let key = secret("client.key", &strange.key_pem());
    let (password_orders, token_orders, unknown_orders, certificate_orders) = tokio::join!(
        orders(secured, "wrong_password", |config| secured.by_password(
            config,
            "PLAIN",
            USER,
            &from_file(&password)
        )),
        orders(secured, "wrong_client", |config| secured.by_token(
            config,
            &tokens,
            &from_file(&client_secret)
        )),
        orders(secured, "wrong_authority", |config| {
            let config = secured.by_password(config, "PLAIN", USER, PASSWORD);
            config.kafka_property("ssl.ca.location", ca.to_str().unwrap())
        }),
        orders(secured, "wrong_certificate", |config| secured
            .by_certificate(config, &certificate, &key)),
    );
    let secrets = ["hush"];
    let mend_certificate = || {
        let relay = secured.sign("relay", &[]);
        replace(&certificate, &relay.certificate_pem());
        replace(&key, &relay.key_pem());
    };
    tokio::join!(
        waits_until_mended(&password_orders, "authentication failed", &secrets, || {
            replace(&password, PASSWORD);
        }),
        waits_until_mended(&token_orders, "oauthbearer token", &secrets, || {
            replace(&client_secret, CLIENT_SECRET);
        }),
        waits_until_mended(
            &unknown_orders,
            "certificate verify failed",
            &secrets,
            || {
                replace(&ca, &secured.authority.certificate_pem());
            }
        ),
        waits_until_mended(&certificate_orders, "ssl", &secrets, mend_certificate),
    );
}

/// The certificate is for 127.0.0.1.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_under_another_name_than_its_certificates_is_refused_unless_that_is_switched_off()
{
    let secured = Secured::shared().await;
    let orders = orders(secured, "wrong_host", |config| {
        secured.by_password(config, "PLAIN", USER, PASSWORD)
    })
    .await;
    let elsewhere = toml_edit::Array::from_iter([secured.sasl_at("localhost")]);
    let config = orders.config.clone().set("kafka.brokers", elsewhere);
    let relay = Relay::start(&config);
    let ids = orders.insert(5).await;
    wait_for_refusal(&relay, "certificate verify failed").await;
    drop(relay);

    let property = "ssl.endpoint.identification.algorithm";
    let config = config.kafka_property(property, "none");
    let checked = config.outboxd(&["check"]);
    assert!(checked.status.success(), "{}", said(&checked));
    let warning = format!("warning  Kafka: `{property} = none`");
    assert!(said(&checked).contains(&warning), "{}", said(&checked));
    let relay = Relay::start(&config);
    orders.wait_for(&ids).await;
    assert!(
        relay
            .log()
            .contains("the connection to Kafka is not protected")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_whose_file_is_not_there_yet_is_waited_for() {
    let secured = Secured::shared().await;
    let password = workspace::folder("secret").join("password");
    let orders = orders(secured, "late_password", |config| {
        secured.by_password(config, "PLAIN", USER, &from_file(&password))
    })
    .await;
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(5).await;
    wait_for_status(&relay, "which file is missing", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        reason.contains("sasl.password") && reason.contains("password`")
    })
    .await;
    replace(&password, PASSWORD);
    assert_once_and_in_order(&orders, &ids).await;
}

/// WRITE on one topic is taken away for a while: only its rows wait, and nothing is condemned.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_written_is_held_alone_and_goes_on_by_itself() {
    let secured = Secured::shared().await;
    let orders = orders(secured, "denied", |config| {
        secured.by_password(config, "PLAIN", USER, PASSWORD)
    })
    .await;
    let denied = orders.config.topic_of("invoice");
    secured.kafka.create_topic(&denied, 1, &[]).await;
    let relay = Relay::start(&orders.config);
    let mut ids = Vec::new();
    ids.extend(insert_both(&orders).await);
    orders.wait_until_marked().await;
    secured.deny_writing(&denied, USER);
    ids.extend(insert_both(&orders).await);
    let status = wait_for_status(&relay, "which topic is held", |status| {
        status["held_topics"][0]["topic"] == denied.as_str()
    })
    .await;
    assert_eq!(status["held"], Value::Array(Vec::new()), "{status}");
    ids.extend(insert_both(&orders).await);
    let written: Vec<Uuid> = ids.iter().map(|(order, _)| *order).collect();
    orders.wait_for(&written).await;
    assert_eq!(secured.kafka.read_topic(&denied).len(), 1);
    secured.allow_writing(&denied, USER);
    wait_until(
        "the held rows are published",
        2 * SOON,
        async || match secured.kafka.read_topic(&denied).len() {
            3.. => Ok(()),
            rows => Err(rows),
        },
    )
    .await;
    let invoices = secured.kafka.read_topic(&denied);
    let published: Vec<&str> = invoices
        .iter()
        .filter_map(|read| read.header("id"))
        .collect();
    let expected: Vec<String> = ids.iter().map(|(_, invoice)| invoice.to_string()).collect();
    assert_eq!(published, expected);
    assert_eq!(orders.published(), written);
}

/// An order and an invoice.
async fn insert_both(orders: &Orders) -> Option<(Uuid, Uuid)> {
    let order = orders.insert(1).await;
    let sql = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
               VALUES ('invoice', 'a', 'sent', '{}') RETURNING id";
    let invoice = orders.client.query_one(sql, &[]).await.unwrap().get(0);
    Some((order[0], invoice))
}

/// The broker closes the connection on it, and TLS tells that in words of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_cut_off_over_tls_is_blocked_and_others_flow() {
    let secured = Secured::shared().await;
    let password = secret("password", PASSWORD);
    let password = from_file(&password);
    let orders = orders(secured, "cut_off", |config| {
        secured.by_password(config, "SCRAM-SHA-256", USER, &password)
    })
    .await;
    let relay = Relay::start(&orders.config);
    let mut ids = orders.insert(5).await;
    orders.wait_for(&ids).await;
    orders
        .run(
            "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
             VALUES ('order', 'large', 'placed', to_json(repeat('x', 2000000)))",
        )
        .await;
    ids.extend(orders.insert(20).await);
    orders.wait_for(&ids).await;
    wait_for_status(&relay, "that a row is held", |status| {
        let reason = status["held"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("closes the connection") && reason.contains("2000007 bytes")
    })
    .await;
}
