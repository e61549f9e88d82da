//! TLS and SASL to Kafka: every way of proving who we are, what is said when it fails, and secrets that change.

mod broker;
mod certificates;
mod tokens;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig, outboxd, said};
use crate::harness::wait_until;
use crate::harness::workspace;
use crate::orders::{ARRIVAL, Orders, wait_for_status};
use broker::{PASSWORD, REVOKED, ROTATED, Secured, USER};
use certificates::{Authority, replace, written};
use tokens::{CLIENT, CLIENT_SECRET, Tokens};

const LONG: Duration = Duration::from_secs(3_600);

/// An outbox whose topic stands on the secured broker.
async fn orders(
    secured: &Secured,
    prefix: &str,
    secure: impl FnOnce(RelayConfig) -> RelayConfig,
) -> Orders {
    let postgres = Postgres::shared(USUAL).await;
    let mut orders = Orders::on(&secured.kafka, postgres, prefix).await;
    orders.config = secure(orders.config);
    orders.config.migrate();
    orders
}

/// A property whose value is read from a file.
fn from_file(path: &Path) -> String {
    format!("${{file:{}}}", path.display())
}

fn secret(name: &str, text: &str) -> PathBuf {
    written(&workspace::folder("secret"), name, text)
}

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
    let provider = secured.authority.sign("provider", &["127.0.0.1"]);
    let tokens = Tokens::start_with_tls(LONG, &provider);
    let password = secret("password", &format!("{PASSWORD}\n"));
    let client_secret = secret("client-secret", CLIENT_SECRET);
    let client = secured.authority.sign("relay", &[]);
    let certificate = secret("client.pem", &client.certificate);
    let key = secret("client.key", &client.key);
    let by_password = |mechanism: &'static str| {
        let password = from_file(&password);
        move |config| {
            let properties = [
                ("sasl.mechanism", mechanism),
                ("sasl.username", USER),
                ("sasl.password", &password),
            ];
            secured.sasl(config, &properties)
        }
    };
    let by_token = |config| {
        let properties = [
            ("sasl.mechanism", "OAUTHBEARER"),
            ("sasl.oauthbearer.method", "oidc"),
            ("sasl.oauthbearer.token.endpoint.url", &*tokens.url),
            ("sasl.oauthbearer.client.id", CLIENT),
            ("sasl.oauthbearer.client.secret", &from_file(&client_secret)),
            ("sasl.oauthbearer.scope", "kafka"),
            ("https.ca.location", secured.ca.to_str().unwrap()),
        ];
        secured.sasl(config, &properties)
    };
    let by_certificate = |config| {
        let properties = [
            ("ssl.certificate.location", certificate.to_str().unwrap()),
            ("ssl.key.location", key.to_str().unwrap()),
        ];
        secured.mutual(config, &properties)
    };
    tokio::join!(
        carries_rows(secured, "plain", by_password("PLAIN")),
        carries_rows(secured, "scram256", by_password("SCRAM-SHA-256")),
        carries_rows(secured, "scram512", by_password("SCRAM-SHA-512")),
        carries_rows(secured, "oidc", by_token),
        carries_rows(secured, "mutual", by_certificate),
    );
}

/// Kafka is said to be away for this reason, and no row is held or condemned for it.
async fn wait_for_refusal(relay: &Relay, reason: &str) {
    let status = wait_for_status(relay, reason, |status| {
        let error = status["kafka"]["error"].as_str().unwrap_or_default();
        status["kafka"]["is_up"] == false && error.to_lowercase().contains(reason)
    })
    .await;
    assert_eq!(status["held"], Value::Array(Vec::new()), "{status}");
    assert_eq!(status["held_topics"], Value::Array(Vec::new()), "{status}");
}

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
    let ca = secret("ca.pem", &Authority::new("a stranger").certificate);
    let stranger = Authority::new("a stranger").sign("relay", &[]);
    let certificate = secret("client.pem", &stranger.certificate);
    let key = secret("client.key", &stranger.key);
    let by_password = [
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", USER),
        ("sasl.password", &from_file(&password)),
    ];
    let by_token = [
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.token.endpoint.url", &tokens.url),
        ("sasl.oauthbearer.client.id", CLIENT),
        ("sasl.oauthbearer.client.secret", &from_file(&client_secret)),
    ];
    let unknown = [
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", USER),
        ("sasl.password", PASSWORD),
        ("ssl.ca.location", ca.to_str().unwrap()),
    ];
    let by_certificate = [
        ("ssl.certificate.location", certificate.to_str().unwrap()),
        ("ssl.key.location", key.to_str().unwrap()),
    ];
    let (password_orders, token_orders, unknown_orders, certificate_orders) = tokio::join!(
        orders(secured, "wrong_password", |config| secured
            .sasl(config, &by_password)),
        orders(secured, "wrong_client", |config| secured
            .sasl(config, &by_token)),
        orders(secured, "wrong_authority", |config| secured
            .sasl(config, &unknown)),
        orders(secured, "wrong_certificate", |config| secured
            .mutual(config, &by_certificate)),
    );
    let secrets = ["hush"];
    let mend_certificate = || {
        let relay = secured.authority.sign("relay", &[]);
        replace(&certificate, &relay.certificate);
        replace(&key, &relay.key);
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
                replace(&ca, &secured.authority.certificate);
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
    let properties = [
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", USER),
        ("sasl.password", PASSWORD),
    ];
    let orders = orders(secured, "wrong_host", |config| {
        secured.sasl(config, &properties)
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

/// Commits rows until it is told to stop, and gives their ids.
async fn insert_while(orders: &Orders, stop: &CancellationToken) -> Vec<Uuid> {
    let mut ids = Vec::new();
    while !stop.is_cancelled() {
        ids.extend(orders.insert(20).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ids
}

/// Every row is in the topic, in order and once.
async fn assert_once_and_in_order(orders: &Orders, ids: &[Uuid]) {
    orders.wait_for(ids).await;
    assert_eq!(orders.published(), ids);
}

async fn wait_for_more(orders: &Orders) {
    let before = orders.published().len();
    wait_until("rows flow", ARRIVAL, async || {
        match orders.published().len() {
            now if now > before => Ok(()),
            now => Err(format!("{now} rows")),
        }
    })
    .await;
}

async fn wait_for_takeovers(relay: &Relay, count: usize) {
    let what = format!("a new producer takes over for the {count}. time");
    wait_until(&what, ARRIVAL, async || {
        match relay
            .log()
            .matches("the new producer has taken over")
            .count()
        {
            seen if seen >= count => Ok(()),
            seen => Err(format!("{seen} times")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_certificates_are_taken_up_under_load_without_a_row_twice() {
    let secured = Secured::shared().await;
    let identity = secured.authority.sign("relay", &[]);
    let certificate = secret("client.pem", &identity.certificate);
    let key = secret("client.key", &identity.key);
    let properties = [
        ("ssl.certificate.location", certificate.to_str().unwrap()),
        ("ssl.key.location", key.to_str().unwrap()),
    ];
    let orders = orders(secured, "rotated_certificate", |config| {
        secured.mutual(config, &properties)
    })
    .await;
    let relay = Relay::start(&orders.config);
    let stop = CancellationToken::new();
    let rotate = async {
        wait_for_more(&orders).await;
        for round in 1..=3 {
            let identity = secured.authority.sign("relay", &[]);
            // A certificate without its key is no pair: the old one goes on until the key has come.
            replace(&certificate, &identity.certificate);
            wait_until("the half pair is refused", ARRIVAL, async || {
                let refused = relay.log().matches("the old one goes on").count();
                if refused >= round {
                    Ok(())
                } else {
                    Err(refused)
                }
            })
            .await;
            replace(&key, &identity.key);
            wait_for_takeovers(&relay, round).await;
        }
        stop.cancel();
    };
    let (ids, ()) = tokio::join!(insert_while(&orders, &stop), rotate);
    assert_once_and_in_order(&orders, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_changed_on_the_broker_and_in_its_file_is_taken_up_without_a_row_twice() {
    let secured = Secured::shared().await;
    let password = secret("password", PASSWORD);
    let properties = [
        ("sasl.mechanism", "SCRAM-SHA-256"),
        ("sasl.username", ROTATED),
        ("sasl.password", &from_file(&password)),
    ];
    let orders = orders(secured, "rotated_password", |config| {
        secured.sasl(config, &properties)
    })
    .await;
    let relay = Relay::start(&orders.config);
    let stop = CancellationToken::new();
    let rotate = async {
        wait_for_more(&orders).await;
        // Connections that stand live on; new ones need the new password.
        secured.set_password("SCRAM-SHA-256", ROTATED, "another-hush");
        replace(&password, "another-hush");
        wait_for_takeovers(&relay, 1).await;
        wait_for_more(&orders).await;
        stop.cancel();
    };
    let (ids, ()) = tokio::join!(insert_while(&orders, &stop), rotate);
    assert_once_and_in_order(&orders, &ids).await;
    assert!(!relay.log().contains("hush"));
}

/// The broker asks connections again and again who they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_revoked_while_rows_flow_is_said_and_mended_by_its_file() {
    let secured = Secured::shared().await;
    let password = secret("password", PASSWORD);
    let properties = [
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", REVOKED),
        ("sasl.password", &from_file(&password)),
    ];
    let orders = orders(secured, "revoked_password", |config| {
        secured.sasl(config, &properties)
    })
    .await;
    let relay = Relay::start(&orders.config);
    let mut ids = orders.insert(10).await;
    orders.wait_for(&ids).await;
    secured.set_password("SCRAM-SHA-512", REVOKED, "another-hush");
    wait_for_refusal(&relay, "authentication").await;
    ids.extend(orders.insert(10).await);
    replace(&password, "another-hush");
    assert_once_and_in_order(&orders, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_before_they_expire() {
    let secured = Secured::shared().await;
    let tokens = Tokens::start(Duration::from_secs(5));
    let properties = [
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.token.endpoint.url", &*tokens.url),
        ("sasl.oauthbearer.client.id", CLIENT),
        ("sasl.oauthbearer.client.secret", CLIENT_SECRET),
    ];
    let orders = orders(secured, "short_tokens", |config| {
        secured.sasl(config, &properties)
    })
    .await;
    let _relay = Relay::start(&orders.config);
    let stop = CancellationToken::new();
    let watch = async {
        wait_until("the third token is given", ARRIVAL, async || {
            match tokens.given() {
                given @ 0..3 => Err(given),
                _ => Ok(()),
            }
        })
        .await;
        stop.cancel();
    };
    let (ids, ()) = tokio::join!(insert_while(&orders, &stop), watch);
    assert_once_and_in_order(&orders, &ids).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_whose_file_is_not_there_yet_is_waited_for() {
    let secured = Secured::shared().await;
    let password = workspace::folder("secret").join("password");
    let properties = [
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", USER),
        ("sasl.password", &from_file(&password)),
    ];
    let orders = orders(secured, "late_password", |config| {
        secured.sasl(config, &properties)
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
    let properties = [
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", USER),
        ("sasl.password", PASSWORD),
    ];
    let orders = orders(secured, "denied", |config| {
        secured.sasl(config, &properties)
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
        2 * ARRIVAL,
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
