//! Secrets that change under load are taken up without a restart and without a row twice.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::broker::{PASSWORD, REVOKED, ROTATED, Secured};
use super::secrets::{from_file, replace, secret};
use super::tokens::{CLIENT_SECRET, Tokens};
use super::{assert_once_and_in_order, orders, wait_for_refusal};
use crate::harness::relay::Relay;
use crate::harness::{SOON, wait_until};
use crate::orders::Orders;

/// Commits rows until it is told to stop, and gives their ids.
async fn insert_while(orders: &Orders, stop: &CancellationToken) -> Vec<Uuid> {
    let mut ids = Vec::new();
    while !stop.is_cancelled() {
        ids.extend(orders.insert(20).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ids
}

async fn wait_for_more(orders: &Orders) {
    let before = orders.published().len();
    wait_until("rows flow", SOON, async || match orders.published().len() {
        now if now > before => Ok(()),
        now => Err(format!("{now} rows")),
    })
    .await;
}

async fn wait_for_takeovers(relay: &Relay, count: usize) {
    let what = format!("a new producer takes over for the {count}. time");
    wait_until(&what, SOON, async || {
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
    let identity = secured.sign("relay", &[]);
    let certificate = secret("client.pem", &identity.certificate_pem());
    let key = secret("client.key", &identity.key_pem());
    let orders = orders(secured, "rotated_certificate", |config| {
        secured.by_certificate(config, &certificate, &key)
    })
    .await;
    let relay = Relay::start(&orders.config);
    let stop = CancellationToken::new();
    let rotate = async {
        wait_for_more(&orders).await;
        for round in 1..=3 {
            let identity = secured.sign("relay", &[]);
            // A certificate without its key is no pair: the old one goes on until the key has come.
            replace(&certificate, &identity.certificate_pem());
            wait_until("the half pair is refused", SOON, async || {
                let refused = relay.log().matches("the old one goes on").count();
                if refused >= round {
                    Ok(())
                } else {
                    Err(refused)
                }
            })
            .await;
            replace(&key, &identity.key_pem());
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
    let orders = orders(secured, "rotated_password", |config| {
        secured.by_password(config, "SCRAM-SHA-256", ROTATED, &from_file(&password))
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
    let orders = orders(secured, "revoked_password", |config| {
        secured.by_password(config, "SCRAM-SHA-512", REVOKED, &from_file(&password))
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
    let orders = orders(secured, "short_tokens", |config| {
        secured.by_token(config, &tokens, CLIENT_SECRET)
    })
    .await;
    let _relay = Relay::start(&orders.config);
    let stop = CancellationToken::new();
    let watch = async {
        wait_until("the third token is given", SOON, async || {
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
