//! A row that can't be published, amid others.

use std::collections::HashSet;
use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use super::rig::{Pair, Rig, SOON, await_publishing};
use super::scene::{Scene, both};
use crate::harness::kafka::Kafka;
use crate::harness::oracle::{Truth, payload};
use crate::harness::topic::Read;
use crate::harness::wait_until;

/// What one bad row may cost the rows of others.
const PAUSE_MAX: Duration = Duration::from_secs(5);

const ROWS: i64 = 500;

/// The broker refuses one row, and with it the request that holds it: 499 are delivered in order, others go on.
pub async fn one_among_many(scene: &Scene) {
    both(scene, poison).await;
}

async fn poison(scene: &Scene, pair: Pair) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let topic = rig.config.topic_of("order");
    // More than all rows in flight together, for the limit counts for whole batches.
    let kafka = Kafka::shared().await;
    kafka
        .alter_topic(&topic, "max.message.bytes", "300000")
        .await;
    let load = rig.load_of(0..10).await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    for round in 0..scene.pick(1, 3, 10) {
        let bad = write_with_one_bad(&client, round).await;
        scene.ran();
        wait_until("the bad row is held", SOON, async || {
            let status = relay.try_status()?;
            match status.to_string().contains(&bad.to_string()) {
                true => Ok(()),
                false => Err(status.to_string()),
            }
        })
        .await;
    }
    // The truth does not hold the bad rows: published, they would be phantoms. Each refusal ends a producer, which may
    // leave records unreported that the broker has.
    let duplicates_max = scene.pick(1, 3, 10) * 2 * super::rig::WINDOW_ROWS;
    load.stop().await;
    rig.verdict(scene, duplicates_max).await;
    let mut oracle = rig.oracle().await;
    oracle.verdict().await;
    let pause = longest_pause(oracle.reads());
    scene.took(&format!("the longest pause, {}", pair.0), pause, PAUSE_MAX);
}

/// One transaction of `ROWS` rows of five aggregates, and one bad row of a sixth in the middle.
async fn write_with_one_bad(client: &Client, round: i64) -> Uuid {
    execute(client, "BEGIN").await;
    let mut bad = Uuid::nil();
    for number in 0..ROWS {
        if number == ROWS / 2 {
            let padding: String = (0..400_000).map(|_| fastrand::alphanumeric()).collect();
            bad = insert(client, &format!("bad-{round}"), 1, &padding, false).await;
            continue;
        }
        let aggregate = format!("poison-{}", number % 5);
        insert(client, &aggregate, round * ROWS + number, "", true).await;
    }
    execute(client, "COMMIT").await;
    bad
}

async fn insert(
    client: &Client,
    aggregate: &str,
    version: i64,
    padding: &str,
    is_told: bool,
) -> Uuid {
    let row = Truth {
        event_id: Uuid::new_v4(),
        aggregate: aggregate.to_owned(),
        version,
    };
    let sql = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
               VALUES ($1, 'order', $2, 'Changed', $3::text::json)";
    let done = client
        .execute(sql, &[&row.event_id, &aggregate, &payload(&row, padding)])
        .await;
    done.expect("insert a row");
    if is_told {
        let sql = "INSERT INTO truth VALUES ($1, $2, $3)";
        let done = client
            .execute(sql, &[&row.event_id, &aggregate, &version])
            .await;
        done.expect("insert the truth");
    }
    row.event_id
}

async fn execute(client: &Client, sql: &str) {
    client
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The longest time between two first occurrences, by when they were handed to the producer.
fn longest_pause(reads: &[Read]) -> Duration {
    let mut seen = HashSet::new();
    let firsts = reads.iter().filter(|read| seen.insert(read.header("id")));
    let mut times: Vec<i64> = firsts.filter_map(|read| read.timestamp_ms).collect();
    times.sort_unstable();
    let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_millis(pauses.max().unwrap_or_default().unsigned_abs())
}
