//! What is held has bounds: an outage halts, and so does too much of what waits.

use super::*;
use crate::conformance::scene::{count, execute, stop};
use crate::harness::relay::Relay;

/// Matrix row 72.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_all_at_fault_halt_the_relay_by_replication() {
    outage(STREAMED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_all_at_fault_halt_the_relay_by_polling() {
    outage(POLLED).await;
}

async fn outage(pair: Pair) {
    let scene = without_invoices(pair).await;
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    execute(client, "BEGIN").await;
    for aggregate in 0..1_000 {
        insert_of(client, "invoice", &format!("invoice-{aggregate}"), 1).await;
    }
    execute(client, "COMMIT").await;
    wait_until_halted(&relay, "outage").await;
    let blocked = count(
        client,
        "SELECT count(*) FROM outboxd.blocked WHERE state <> 'released'",
    )
    .await;
    assert!(blocked <= 100, "{blocked} aggregates are blocked");
    stop(&mut relay);
    let mut relay = Relay::start(&allow_all(config));
    done(config, &["blocked", "retry", "--all"]);
    judge_both(&scene, 0).await;
    scene.wait_until_marked().await;
    stop(&mut relay);
}

async fn wait_until_halted(relay: &Relay, reason: &str) {
    wait_until("the relay halts", SOON, async || {
        let status = relay.try_status()?;
        let is_it = status["role"] == "halted"
            && status["reason"]
                .as_str()
                .is_some_and(|text| text.contains(reason));
        is_it.then_some(()).ok_or(status.to_string())
    })
    .await;
}

/// `faults.policy = "halt"`: nothing goes out until a person acts, then all of it in order, without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn by_policy_a_row_at_fault_halts_the_relay() {
    let mut scene = Scene::new(POLLED).await;
    scene.config = scene.config.clone().set("faults.policy", "halt");
    let client = &scene.client;
    let mut relay = scene.start_steady().await;
    insert_at_fault(client, "order-0", 1).await;
    insert(client, "order-0", 2).await;
    wait_until_halted(&relay, "can't be published").await;
    assert!(list(&scene.config, "blocked").is_empty());
    execute(client, "UPDATE outbox SET headers = NULL").await;
    scene.judge_to_the_end(&mut relay).await;
}

/// Nothing that a role needs is missing: the table's owner migrates, the relay and its commands do the rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_role_blocks_keeps_and_retries() {
    let mut scene = without_invoices(pair("replication", "none")).await;
    let role = format!("keeper_{}", scene.database.name);
    let client = &scene.client;
    execute(client, &format!("CREATE ROLE {role} LOGIN REPLICATION")).await;
    done(&scene.config, &["migrate", "--relay-role", &role]);
    let url = scene
        .database
        .url
        .replace("//postgres@", &format!("//{role}@"));
    scene.config = scene.config.clone().set("source.url", url);
    let mut relay = scene.start_steady().await;
    write_invoice(client, 1..=3).await;
    let entry = wait_until_blocked(&scene.config, 3).await;
    assert_eq!(entry["copies"], 3);
    stop(&mut relay);
    let mut relay = Relay::start(&allow_all(&scene.config));
    done(&scene.config, &["blocked", "retry", "--all"]);
    judge_both(&scene, 0).await;
    stop(&mut relay);
}

/// Copies that are there already, written as the relay writes them, so that the test need not send 256 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn more_copies_than_the_database_should_keep_halt_the_relay() {
    let scene = Scene::new(STREAMED).await;
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    insert_at_fault(client, "order-0", 1).await;
    let entry = wait_until_blocked(config, 1).await;
    stop(&mut relay);
    execute(
        client,
        "ALTER TABLE outboxd.kept ALTER fields SET STORAGE EXTERNAL;
         INSERT INTO outboxd.kept (outbox, key, blocked_key, state, generation, row_id, fields, reason, error, epoch)
         SELECT b.outbox, n::text, b.key, 'held', 1, n::text, ARRAY[convert_to(repeat('x', 1 << 20), 'UTF8')], '', '', 1
         FROM outboxd.blocked b, generate_series(1, 257) n",
    )
    .await;
    relay.restart();
    wait_until_halted(&relay, "outboxd.kept").await;
    execute(
        client,
        "DELETE FROM outboxd.kept; UPDATE outbox SET headers = NULL",
    )
    .await;
    done(config, &["blocked", "retry", &id_of(&entry), "--no-wait"]);
    scene.judge_to_the_end(&mut relay).await;
}
