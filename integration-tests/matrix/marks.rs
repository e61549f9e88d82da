//! At any instant: what is marked is in Kafka, and what is confirmed is marked.

use std::collections::HashSet;
use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use super::rig::{Pair, Rig, SOON, await_publishing, published, random_moment};
use super::scene::Scene;
use crate::harness::oracle::{Oracle, truth};

pub async fn nothing_is_early(scene: &Scene) {
    // What was marked must be there to be seen.
    let shown = |pair: Pair| match pair {
        Pair(mode, "delete") => Pair(mode, "ledger"),
        pair => pair,
    };
    let (streamed, polled) = (shown(scene.streamed()), shown(scene.polled()));
    tokio::join!(sample(scene, streamed), sample(scene, polled));
}

/// The relay is frozen at random moments, so that database and topic are read as of one instant of it.
async fn sample(scene: &Scene, pair: Pair) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    let mut oracle = rig.oracle().await;
    for number in 0..scene.pick(6, 20, 50) {
        let before = published(&relay).await;
        await_publishing(&relay, before, SOON).await;
        random_moment(Duration::from_millis(500)).await;
        relay.freeze();
        scene.ran();
        assert_in_log(scene, &client, &mut oracle).await;
        if rig.is_slot_active(&client).await.is_some() {
            assert_confirmed_is_marked(scene, &client, number).await;
        }
        relay.thaw();
    }
    rig.show(scene, load, 0).await;
}

/// Every row that is marked now is in the log.
pub async fn assert_in_log(scene: &Scene, client: &Client, oracle: &mut Oracle) {
    let marked = marked(client).await;
    scene.require(!marked.is_empty(), || "no row is marked".into());
    oracle.verdict().await;
    let log: HashSet<Uuid> = oracle
        .reads()
        .iter()
        .filter_map(|read| Uuid::try_parse(read.header("id")?).ok())
        .collect();
    let early = marked.difference(&log).count();
    scene.require(early == 0, || {
        format!(
            "{early} of {} rows are marked and not in Kafka",
            marked.len()
        )
    });
}

async fn marked(client: &Client) -> HashSet<Uuid> {
    let rows = client
        .query("SELECT id FROM outbox_status WHERE sent", &[])
        .await
        .expect("read what is marked");
    rows.iter().map(|row| row.get(0)).collect()
}

/// What a copy of the slot still sends was not confirmed; every other committed row must be marked.
async fn assert_confirmed_is_marked(scene: &Scene, client: &Client, number: usize) {
    // In this order: what is committed later is no matter.
    let committed = truth(client).await;
    let slot = "SELECT slot_name::text, slot_name || '_copy_' || $1 FROM pg_replication_slots
                WHERE database = current_database() AND slot_name NOT LIKE '%\\_copy\\_%'";
    let row = client.query_one(slot, &[&number.to_string()]).await;
    let row = row.expect("find the slot");
    let (slot, copy): (String, String) = (row.get(0), row.get(1));
    let copied = client
        .execute(
            "SELECT pg_copy_logical_replication_slot($1::text::name, $2::text::name)",
            &[&slot, &copy],
        )
        .await;
    copied.expect("copy the slot");
    let changes = "SELECT data FROM pg_logical_slot_get_binary_changes($1::text::name, NULL, NULL,
                       'proto_version', '1', 'publication_names', $2)";
    let changes = client.query(changes, &[&copy, &slot]).await;
    let changes = changes.expect("read the copy");
    let unconfirmed: HashSet<Uuid> = changes
        .iter()
        .filter_map(|row| inserted(row.get(0)))
        .collect();
    let dropped = client
        .execute("SELECT pg_drop_replication_slot($1::text::name)", &[&copy])
        .await;
    dropped.expect("drop the copy");
    let marked = marked(client).await;
    let early = committed
        .iter()
        .filter(|row| !unconfirmed.contains(&row.event_id) && !marked.contains(&row.event_id))
        .count();
    scene.require(early == 0, || {
        format!(
            "{early} of {} rows are confirmed and not marked",
            committed.len()
        )
    });
}

/// The id, first column of an Insert message: `I`, table, `N`, columns, `t`, length, text.
fn inserted(message: &[u8]) -> Option<Uuid> {
    let id = message
        .strip_prefix(b"I")?
        .get(4 + 1 + 2 + 1 + 4..)?
        .get(..36)?;
    Uuid::try_parse(std::str::from_utf8(id).ok()?).ok()
}
