//! What a relay does again after its process has died, and what it never tells the server.

use std::collections::HashMap;

use rdkafka::admin::AdminOptions;
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::by_ledger;
use crate::conformance::scene::{Pair, SOON, Scene, execute, insert};
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::{wait_until, workspace};
use crate::matrix::rig::random_moment;
use crate::orders::Orders;

/// Killed while 14 of 30 rows are on their way: what was acknowledged before does not come again.
pub async fn pq_02_only_what_was_not_acknowledged_comes_again(mode: &'static str) {
    let scene = Scene::new(by_ledger(mode)).await;
    let mut relay = scene.start_steady().await;
    let mut acknowledged = Vec::new();
    for version in 1..=16 {
        acknowledged.push(insert(&scene.client, "order-1", version).await);
    }
    scene.judge().await;
    scene.wait_until_marked().await;
    scene.wait_until_confirmed().await;
    execute(&scene.client, "BEGIN").await;
    for version in 17..=30 {
        insert(&scene.client, "order-1", version).await;
    }
    execute(&scene.client, "COMMIT").await;
    random_moment(std::time::Duration::from_millis(100)).await;
    relay.kill9();
    relay.restart();
    let mut oracle = scene.oracle().await;
    let verdict = oracle.verdict_when_drained(SOON).await;
    verdict.assert_clean(14);
    let mut times: HashMap<Uuid, usize> = HashMap::new();
    for read in oracle.reads() {
        let id = read.header("id").and_then(|id| id.parse().ok());
        *times.entry(id.expect("an id")).or_default() += 1;
    }
    assert!(acknowledged.iter().all(|row| times[row] == 1), "{times:?}");
}

/// A relay that has acknowledged nothing yet answers keepalives, and confirms no more than the one before it.
pub async fn cd_01_no_keepalive_confirms_what_was_not_delivered(mode: &'static str) {
    for mark in ["ledger", "none"] {
        let scene = Scene::new(Pair {
            mark,
            ..by_ledger(mode)
        })
        .await;
        let mut relay = scene.start_steady().await;
        insert(&scene.client, "order-1", 1).await;
        scene.judge().await;
        scene.wait_until_marked().await;
        scene.wait_until_confirmed().await;
        relay.kill9();
        let nobody = format!("127.0.0.1:{}", workspace::free_port());
        let brokers = toml_edit::Array::from_iter([nobody]);
        let mut cut_off = Relay::start(&scene.config.clone().set("kafka.brokers", brokers));
        let row = insert(&scene.client, "order-1", 2).await;
        for _ in 0..3 {
            await_reply(&scene).await;
        }
        cut_off.kill9();
        relay.restart();
        scene.wait_for_row(&mut scene.reader(), row).await;
        // Neither is the first one redelivered.
        scene.judge().await;
    }
}

/// Waits until the walsender, which has sent everything there is, was answered once more.
async fn await_reply(scene: &Scene) {
    let sql = "SELECT clock_timestamp()::text, pg_current_wal_flush_lsn()::text,
                      pg_logical_emit_message(true, 'neighbour', 'x')::text";
    let row = scene.client.query_one(sql, &[]).await.expect("write WAL");
    let (now, lsn): (&str, &str) = (row.get(0), row.get(1));
    let sql = format!(
        "SELECT count(*) FILTER (WHERE r.reply_time > '{now}' AND r.sent_lsn >= '{lsn}')
         FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
         WHERE s.database = current_database()"
    );
    wait_until("the walsender is answered", SOON, async || {
        let row = scene.client.query_one(&sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

/// Kafka has expired everything that was published: what is marked stays marked, whatever the topic holds.
pub async fn ev_03_an_expired_topic_brings_nothing_back(mode: &'static str) {
    let postgres = Postgres::shared(USUAL).await;
    let orders = Orders::create(postgres, "peers", |config| config.mode(mode)).await;
    let mut relay = Relay::start(&orders.config);
    let expired = orders.insert(20).await;
    orders.wait_for(&expired).await;
    orders.wait_until_marked().await;
    relay.kill9();
    let topic = orders.config.topic_of("order");
    expire(&topic).await;
    relay.restart();
    let new = orders.insert(20).await;
    orders.wait_for(&new).await;
    let kept = Kafka::shared().await.read_topic(&topic);
    let ids: Vec<Uuid> = kept
        .iter()
        .filter_map(|read| read.header("id")?.parse().ok())
        .collect();
    assert_eq!(ids, new);
}

/// Deletes every record of a topic of one partition.
async fn expire(topic: &str) {
    let mut ends = TopicPartitionList::new();
    let added = ends.add_partition_offset(topic, 0, Offset::End);
    added.expect("a partition ends somewhere");
    let admin = Kafka::shared().await.admin();
    let deleted = admin.delete_records(&ends, &AdminOptions::new()).await;
    for partition in deleted.expect("delete records").elements() {
        partition.error().expect("delete records");
    }
}
