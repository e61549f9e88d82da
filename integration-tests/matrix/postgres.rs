//! What happens to PostgreSQL: stopped, crashed, its backends terminated.

use std::time::{Duration, Instant};

use super::pair::Both;
use super::rig::{Pair, Rig, SOON, WINDOW_ROWS, await_publishing, published, random_moment};
use super::scene::{Scene, both};
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, Stop, USUAL};
use crate::harness::wait_until;

/// What an operator's `pg_ctl stop -m fast` may take.
pub const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// After a restart of the server; the relay's pause between attempts doubles while it is away.
const PUBLISHES_AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// How PostgreSQL goes away.
#[derive(Clone, Copy, Debug)]
enum Going {
    Stop(Stop),
    KillPostmaster,
    KillBackend,
}

pub async fn crashed(scene: &Scene) {
    away(scene, scene.pick(3, 10, 50), Going::Stop(Stop::Immediate)).await;
}

/// PostgreSQL 15 sends confirmed transactions again after every restart: the ledger must know them.
pub async fn restarted(scene: &Scene) {
    away(scene, scene.pick(3, 10, 50), Going::Stop(Stop::Fast)).await;
}

pub async fn killed(scene: &Scene) {
    away(scene, scene.pick(1, 3, 10), Going::KillPostmaster).await;
    away(scene, scene.pick(1, 3, 10), Going::KillBackend).await;
}

async fn away(scene: &Scene, times: usize, going: Going) {
    let mut postgres = Postgres::start(USUAL);
    let both = Both::new(scene, &postgres, Kafka::shared().await).await;
    for _ in 0..times {
        random_moment(Duration::from_millis(500)).await;
        match going {
            Going::Stop(stop) => {
                let took = postgres.stop(stop);
                scene.took("a stop", took, STOPS_WITHIN);
                postgres.restart();
            }
            Going::KillPostmaster => {
                postgres.kill();
                postgres.restart();
            }
            Going::KillBackend => kill_a_backend(&both).await,
        }
        scene.ran();
        scene.took(
            "publishing again",
            both.await_publishing(50).await,
            PUBLISHES_AGAIN_WITHIN,
        );
    }
    both.judge(scene, 0).await;
}

/// One that works for a relay; the server ends all others too and recovers.
async fn kill_a_backend(both: &Both) {
    let client = both.rigs[0].client().await;
    let backends = both.rigs[0].backends(&client).await;
    let pid = backends
        .first()
        .expect("a backend of the relay")
        .to_string();
    let sent = std::process::Command::new("kill")
        .args(["-9", &pid])
        .status();
    assert!(sent.is_ok_and(|status| status.success()), "kill {pid}");
}

/// A primary that can't be stopped is an outage of its own: twice, before the relay has left the slot and after.
pub async fn stopped_while_kafka_is_away(scene: &Scene) {
    let mut kafka = Kafka::start();
    let mut postgres = Postgres::start(USUAL);
    let both = Both::new(scene, &postgres, &kafka).await;
    kafka.freeze();
    for pause in [5, 32] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        let took = postgres.stop(Stop::Fast);
        postgres.restart();
        scene.ran();
        scene.took("a stop", took, STOPS_WITHIN);
    }
    kafka.thaw();
    kafka.await_leaders().await;
    // A broker that was fenced for longer than an election takes costs what is in flight.
    both.judge(scene, WINDOW_ROWS).await;
}

pub async fn walsender_terminated(scene: &Scene) {
    let pair = scene.streamed();
    let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
               WHERE database = current_database() AND active";
    terminate(scene, pair, scene.pick(10, 20, 100), sql).await;
}

/// Every connection of the relay at once, with any mark.
pub async fn backends_terminated(scene: &Scene, pair: Pair, times: usize) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'outboxd%'";
    terminate(scene, pair, times, sql).await;
}

/// Both modes with the ledger.
pub async fn all_backends_terminated(scene: &Scene) {
    both(scene, async |scene, pair| {
        backends_terminated(scene, pair, scene.pick(10, 20, 100)).await;
    })
    .await;
}

async fn terminate(scene: &Scene, pair: Pair, times: usize, sql: &str) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    if pair.0 == "replication" {
        rig.await_streaming(&client).await;
    }
    for _ in 0..times {
        random_moment(Duration::from_millis(500)).await;
        let before = published(&relay).await;
        // The relay may just be on its way back.
        wait_until(
            "a backend is there to terminate",
            SOON,
            async || match client.query(sql, &[]).await.expect("terminate").len() {
                0 => Err("none"),
                _ => Ok(()),
            },
        )
        .await;
        let terminated_at = Instant::now();
        scene.ran();
        await_publishing(&relay, before + 100, SOON).await;
        scene.took(
            "publishing again",
            terminated_at.elapsed(),
            Duration::from_secs(1),
        );
    }
    rig.show(scene, load, 0).await;
}
