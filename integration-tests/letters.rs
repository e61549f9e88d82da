//! What is blocked or a dead letter stays so across restarts, and goes out in order when a person says so.

mod bounds;
mod dead;
mod order;
mod retry;
mod topics;

use std::process::Output;

use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::conformance::scene::{Pair, SOON, Scene, insert, insert_of};
use crate::harness::oracle::{Oracle, Truth, payload};
use crate::harness::postgres::USUAL;
use crate::harness::relay::{RelayConfig, said};
use crate::harness::topic::TopicReader;
use crate::harness::wait_until;

const STREAMED: Pair = pair("replication", "ledger");
const POLLED: Pair = pair("polling", "ledger");

const fn pair(mode: &'static str, mark: &'static str) -> Pair {
    Pair {
        mode,
        mark,
        major: USUAL,
    }
}

/// A row at fault, `headers` holds a reserved name; mended by an UPDATE.
async fn insert_at_fault(client: &Client, aggregate: &str, version: i64) -> Uuid {
    let row = Truth {
        event_id: Uuid::new_v4(),
        aggregate: aggregate.to_owned(),
        version,
    };
    let sql = "WITH truth AS (INSERT INTO truth VALUES ($1, $2, $3))
               INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers)
               VALUES ($1, 'order', $2, 'Changed', $4::text::json, '{\"id\": \"another\"}')";
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
        [&row.event_id, &aggregate, &version, &payload(&row, "")];
    client
        .execute(sql, &values)
        .await
        .expect("insert a row at fault");
    row.event_id
}

/// A scene whose invoices may not reach their topic, though it exists; mended by `allow_all`.
async fn without_invoices(pair: Pair) -> Scene {
    let mut scene = Scene::new(pair).await;
    scene
        .create_topic(&scene.config.topic_of("invoice"), &[])
        .await;
    let orders = toml_edit::Array::from_iter([scene.topic()]);
    scene.config = scene.config.clone().set("route.allow", orders);
    scene
}

fn allow_all(config: &RelayConfig) -> RelayConfig {
    let allowed = [config.topic_of("order"), config.topic_of("invoice")];
    config
        .clone()
        .set("route.allow", toml_edit::Array::from_iter(allowed))
}

/// A reader of both topics.
fn both_topics(scene: &Scene) -> TopicReader {
    scene
        .kafka
        .reader(&[&scene.topic(), &scene.config.topic_of("invoice")])
}

/// Everything committed is in its topic, in order, with at most so many duplicates.
async fn judge_both(scene: &Scene, duplicates_max: usize) {
    let mut oracle = Oracle::new(scene.database.client().await, both_topics(scene));
    oracle
        .verdict_when_drained(SOON)
        .await
        .assert_clean(duplicates_max);
}

/// Runs a command that must succeed, and returns what it says.
fn done(config: &RelayConfig, arguments: &[&str]) -> String {
    let output = config.outboxd(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    said(&output)
}

/// Runs a command that must exit with this code, and returns what it says.
fn exits(config: &RelayConfig, code: i32, arguments: &[&str]) -> String {
    let output = config.outboxd(arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {}",
        said(&output)
    );
    said(&output)
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

/// What `blocked list` or `dead-letters list` tells.
fn list(config: &RelayConfig, what: &str) -> Vec<Value> {
    let output = config.outboxd(&[what, "list", "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    json(&output).as_array().expect("a list").clone()
}

/// Waits until one thing is blocked with so many rows, and returns its entry.
async fn wait_until_blocked(config: &RelayConfig, rows: i64) -> Value {
    wait_until("it is listed as blocked", SOON, async || {
        let list = tokio::task::block_in_place(|| list(config, "blocked"));
        match list.as_slice() {
            [entry] if entry["rows_waiting"] == rows => Ok(entry.clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Waits until there are so many dead letters, and returns them.
async fn wait_for_letters(config: &RelayConfig, count: usize) -> Vec<Value> {
    wait_until("the dead letters are listed", SOON, async || {
        let list = tokio::task::block_in_place(|| list(config, "dead-letters"));
        match list.len() {
            found if found == count => Ok(list),
            found => Err(format!("{found} of {count}: {:?}", list.last())),
        }
    })
    .await
}

fn id_of(entry: &Value) -> String {
    match &entry["id"] {
        Value::String(id) => id.clone(),
        other => other.to_string(),
    }
}

/// Rows of `order` aggregates that flow whatever is blocked.
async fn write_others(client: &Client, versions: std::ops::RangeInclusive<i64>) -> Uuid {
    let mut last = Uuid::nil();
    for version in versions {
        last = insert(client, &format!("other-{}", version % 5), version).await;
    }
    last
}

/// Rows of one invoice.
async fn write_invoice(client: &Client, versions: std::ops::RangeInclusive<i64>) -> Vec<Uuid> {
    let mut ids = Vec::new();
    for version in versions {
        ids.push(insert_of(client, "invoice", "invoice-1", version).await);
    }
    ids
}
