//! The relay is killed at a chosen point of a row's way, which a proxy or the database shows.
//!
//! The points are held open from outside, so the binary needs no hooks: replies of the broker or of the walsender are
//! kept back, or the ledger is locked, and the kill comes when the effect before has been seen.

use std::time::Duration;

use tokio_postgres::Client;

use super::rig::{
    POLLED, Pair, Rig, SOON, STREAMED, TRANSACTION_ROWS, WINDOW_ROWS, await_publishing, published,
};
use super::scene::{Scene, both};
use crate::harness::kafka::Kafka;
use crate::harness::load::write_rows;
use crate::harness::order_writer::Fate;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::proxy::Proxy;
use crate::harness::relay::Relay;
use crate::harness::topic::TopicReader;
use crate::harness::wait_until;

/// Where on a row's way the kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The broker has appended, its acknowledgement is kept back.
    Produced,
    /// Acknowledged; the mark waits for a lock.
    Acknowledged,
    /// Marked; the status update to the walsender is kept back.
    Marked,
    /// A status update that confirms more than before is on its way.
    Confirming,
    /// The first rows after a restart are out again.
    Replaying,
}

/// What stands around the relay.
struct Stage<'a> {
    rig: Rig,
    client: Client,
    to_postgres: Proxy,
    to_kafka: Option<&'a Proxy>,
    /// Reads past the proxy.
    reader: TopicReader,
}

pub async fn killed_after_produce(scene: &Scene) {
    both(scene, async |scene, pair| {
        kill_at(scene, pair, Point::Produced).await
    })
    .await;
}

pub async fn killed_after_acknowledgement(scene: &Scene) {
    // The ledger is locked to hold the point open.
    tokio::join!(
        kill_at(scene, STREAMED, Point::Acknowledged),
        kill_at(scene, POLLED, Point::Acknowledged)
    );
}

pub async fn killed_after_mark(scene: &Scene) {
    kill_at(scene, STREAMED, Point::Marked).await;
}

pub async fn killed_while_confirming(scene: &Scene) {
    kill_at(scene, scene.streamed(), Point::Confirming).await;
}

pub async fn killed_while_replaying(scene: &Scene) {
    both(scene, async |scene, pair| {
        kill_at(scene, pair, Point::Replaying).await
    })
    .await;
}

/// While rows that stood there before the relay are read from the table, and writers go on.
pub async fn killed_while_catching_up(scene: &Scene) {
    tokio::join!(
        catch_up(scene, scene.streamed()),
        catch_up(scene, scene.polled())
    );
}

async fn kill_at(scene: &Scene, pair: Pair, point: Point) {
    let postgres = Postgres::shared(USUAL).await;
    let mut behind_proxy = None;
    if point == Point::Produced {
        behind_proxy = Some(Kafka::start_behind_proxy().await);
    }
    let (kafka, to_kafka) = match &behind_proxy {
        Some((kafka, proxy)) => (kafka, Some(proxy)),
        None => (Kafka::shared().await, None),
    };
    let mut rig = Rig::new(pair, postgres, kafka).await;
    if let Some(proxy) = to_kafka {
        rig.through_kafka_proxy(proxy);
    }
    let to_postgres = rig.through_proxy().await;
    let mut stage = Stage {
        client: rig.client().await,
        reader: kafka.reader(&[&rig.config.topic_of("order")]),
        rig,
        to_postgres,
        to_kafka,
    };
    let load = stage.rig.load().await;
    let mut relay = stage.rig.relay();
    let kills = scene.pick(2, 4, 20);
    for _ in 0..kills {
        await_publishing(&relay, 0, SOON).await;
        if pair.is_streamed() {
            stage.rig.await_streaming(&stage.client).await;
        }
        stage.reach(point, &mut relay).await;
        relay.kill9();
        scene.ran();
        stage.heal().await;
        relay.restart();
    }
    await_publishing(&relay, 0, SOON).await;
    // One that replays has been killed just before.
    let kills = if point == Point::Replaying {
        2 * kills
    } else {
        kills
    };
    let duplicates_max = kills * (WINDOW_ROWS + TRANSACTION_ROWS);
    stage.rig.show(scene, load, duplicates_max).await;
}

impl Stage<'_> {
    async fn reach(&mut self, point: Point, relay: &mut Relay) {
        match point {
            Point::Produced => {
                // A producer that has just started sends one record to each partition and waits for its acknowledgement.
                await_publishing(relay, 100, SOON).await;
                // Counted first: soon after, the window is full and the log grows no more.
                let before = self.records();
                let proxy = self.to_kafka.expect("a broker behind a proxy");
                proxy.set(|weather| weather.to_client.is_held = true);
                let more = async || more_than(before, self.records());
                wait_until("the log has grown", SOON, more).await;
            }
            Point::Acknowledged => {
                let lock = "BEGIN; LOCK TABLE outboxd.ledger IN SHARE MODE";
                self.client
                    .batch_execute(lock)
                    .await
                    .expect("lock the ledger");
                wait_until("rows are acknowledged and not marked", SOON, async || {
                    let marked = relay.metric("outboxd_marked_rows_total").await;
                    more_than(
                        marked.unwrap_or_default() as usize + 10,
                        published(relay).await as usize,
                    )
                })
                .await;
            }
            Point::Marked => {
                self.to_postgres.set(|weather| {
                    weather.is_for_replication = true;
                    weather.to_server.is_held = true;
                });
                let before = self.marked().await;
                let more = async || more_than(before, self.marked().await);
                wait_until("more rows are marked", SOON, more).await;
            }
            Point::Confirming => {
                let before = self.to_postgres.confirmed_lsn();
                while self.to_postgres.confirmed_lsn() == before {
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
            }
            Point::Replaying => {
                relay.kill9();
                relay.restart();
                await_publishing(relay, 0, SOON).await;
            }
        }
    }

    async fn heal(&self) {
        if let Some(proxy) = self.to_kafka {
            proxy.clear();
        }
        self.to_postgres.clear();
        self.client
            .batch_execute("ROLLBACK")
            .await
            .expect("let the ledger go");
    }

    fn records(&mut self) -> usize {
        tokio::task::block_in_place(|| self.reader.read_to_end().len())
    }

    async fn marked(&self) -> usize {
        let sql = "SELECT count(*) FROM outbox_status WHERE sent";
        let row = self
            .client
            .query_one(sql, &[])
            .await
            .expect("count the marks");
        row.get::<_, i64>(0) as usize
    }
}

fn more_than(before: usize, now: usize) -> Result<(), String> {
    if now > before {
        Ok(())
    } else {
        Err(format!("{now}"))
    }
}

async fn catch_up(scene: &Scene, pair: Pair) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    crate::harness::load::prepare(&client, 50).await;
    for aggregate in 0..scene.pick(10, 20, 50) {
        let written = write_rows(
            &client,
            aggregate,
            scene.pick(1_000, 2_000, 20_000),
            Fate::Commit,
        )
        .await;
        written.expect("write what stands there first");
    }
    let load = rig.load().await;
    let mut relay = rig.relay();
    let kills = scene.pick(2, 4, 20);
    for _ in 0..kills {
        await_publishing(&relay, fastrand::u64(0..3_000), SOON).await;
        relay.kill9();
        scene.ran();
        relay.restart();
    }
    rig.show(scene, load, kills * (WINDOW_ROWS + TRANSACTION_ROWS))
        .await;
}
