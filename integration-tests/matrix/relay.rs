//! What happens to the relay's process: killed, stopped, frozen.

use std::time::{Duration, Instant};

use super::marks;
use super::rig::{
    Pair, Rig, SOON, TRANSACTION_ROWS, WINDOW_ROWS, await_publishing, published, random_moment,
};
use super::scene::{Scene, both, both_or_unmarked};
use crate::harness::kafka::Kafka;
use crate::harness::load::write_rows;
use crate::harness::order_writer::Fate;
use crate::harness::postgres::{Postgres, USUAL};

/// `shutdown.grace` and five seconds to leave.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// After a kill or a restart.
const PUBLISHES_AGAIN_WITHIN: Duration = Duration::from_secs(2);

pub async fn killed_at_random(scene: &Scene) {
    both_or_unmarked(scene, async |scene, pair| {
        kill(scene, pair, scene.pick(20, 40, 50)).await
    })
    .await;
}

/// Kills a relay with any mark so many times.
pub async fn kill(scene: &Scene, pair: Pair, kills: usize) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    let mut oracle = rig.oracle().await;
    if pair.1 == "none" {
        // Until the stream has taken over, nothing is recorded and a kill begins with the table again.
        rig.await_streaming(&client).await;
    }
    for number in 0..kills {
        // Every third kill may hit a relay that has only just been started.
        if number % 3 != 2 {
            let took = await_publishing(&relay, 0, SOON).await;
            scene.took("publishing again", took, PUBLISHES_AGAIN_WITHIN);
        }
        random_moment(Duration::from_millis(700)).await;
        relay.kill9();
        scene.ran();
        if number % 5 == 4 && pair.1 == "ledger" {
            marks::assert_in_log(scene, &client, &mut oracle).await;
        }
        relay.restart();
    }
    await_publishing(&relay, 0, SOON).await;
    rig.show(scene, load, kills * (WINDOW_ROWS + TRANSACTION_ROWS))
        .await;
}

/// The window counts rows until they are marked, so the size of a transaction does not matter.
pub async fn killed_amid_a_large_transaction(scene: &Scene) {
    both(scene, kill_amid).await;
}

async fn kill_amid(scene: &Scene, pair: Pair) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let done = write_rows(
        &client,
        0,
        scene.pick(20_000, 20_000, 600_000),
        Fate::Commit,
    )
    .await;
    done.expect("write a large transaction");
    let kills = scene.pick(4, 6, 20);
    for _ in 0..kills {
        let before = published(&relay).await;
        await_publishing(&relay, before + fastrand::u64(0..2_000), SOON).await;
        relay.kill9();
        scene.ran();
        relay.restart();
    }
    rig.show(scene, load, kills * WINDOW_ROWS).await;
}

pub async fn stopped_under_load(scene: &Scene) {
    both_or_unmarked(scene, stop).await;
}

async fn stop(scene: &Scene, pair: Pair) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    for _ in 0..scene.pick(10, 20, 50) {
        await_publishing(&relay, 0, SOON).await;
        random_moment(Duration::from_millis(400)).await;
        let asked_at = Instant::now();
        let status = relay.terminate();
        scene.ran();
        scene.took("a stop", asked_at.elapsed(), ENDS_WITHIN);
        scene.require(status.success(), || {
            format!("the relay ended with {status}")
        });
        let is_active = rig.is_slot_active(&client).await;
        scene.require(is_active != Some(true), || {
            "the slot is still read after the end".into()
        });
        relay.restart();
    }
    rig.show(scene, load, 0).await;
}

pub async fn stopped_while_kafka_is_dead(scene: &Scene) {
    let mut kafka = Kafka::start();
    let postgres = Postgres::shared(USUAL).await;
    let rigs = [
        Rig::new(scene.streamed(), postgres, &kafka).await,
        Rig::new(scene.polled(), postgres, &kafka).await,
    ];
    let loads = [rigs[0].load().await, rigs[1].load().await];
    let mut relays = rigs.each_ref().map(Rig::relay);
    for _ in 0..scene.pick(1, 2, 10) {
        for relay in &relays {
            await_publishing(relay, 0, SOON).await;
        }
        kafka.kill();
        for load in &loads {
            load.progress(50, SOON).await;
        }
        for relay in &mut relays {
            let asked_at = Instant::now();
            let status = relay.terminate();
            scene.ran();
            scene.took("a stop", asked_at.elapsed(), ENDS_WITHIN);
            scene.require(status.code().is_some(), || {
                format!("the relay ended with {status}")
            });
        }
        kafka.restart();
        relays.iter_mut().for_each(|relay| relay.restart());
    }
    // What a dead broker had stored and not acknowledged comes again.
    let duplicates_max = scene.pick(1, 2, 10) * (WINDOW_ROWS + TRANSACTION_ROWS);
    for (rig, load) in rigs.iter().zip(loads) {
        rig.show(scene, load, duplicates_max).await;
    }
}

/// Frozen for longer than its lease lives and than PostgreSQL waits for it, with nobody to take over, as a machine
/// that sleeps.
pub async fn asleep(scene: &Scene) {
    let settings = [("wal_sender_timeout", "5s")];
    let postgres = Postgres::start_with(USUAL, &settings);
    both(scene, async |scene, pair| {
        let mut rig = Rig::new(pair, &postgres, Kafka::shared().await).await;
        rig.set("lease.ttl", "2s");
        let load = rig.load().await;
        let mut relay = rig.relay();
        let naps = scene.pick(1, 2, 5);
        for _ in 0..naps {
            let before = published(&relay).await;
            await_publishing(&relay, before, SOON).await;
            relay.freeze();
            tokio::time::sleep(Duration::from_secs(scene.pick(8, 12, 60))).await;
            relay.thaw();
            scene.ran();
            let before = published(&relay).await;
            await_publishing(&relay, before + 100, SOON).await;
        }
        rig.show(scene, load, naps * (WINDOW_ROWS + TRANSACTION_ROWS))
            .await;
        scene.require(relay.is_running(), || "the relay has ended".into());
    })
    .await;
}

/// A signal that says "read your configuration again" to many daemons, and nothing to this one.
pub async fn hung_up(scene: &Scene) {
    both_or_unmarked(scene, async |scene, pair| {
        let rig = Rig::shared(pair).await;
        let load = rig.load().await;
        let mut relay = rig.relay();
        for _ in 0..3 {
            let before = published(&relay).await;
            await_publishing(&relay, before, SOON).await;
            relay.signal("HUP");
            scene.ran();
        }
        let before = published(&relay).await;
        await_publishing(&relay, before + 100, SOON).await;
        rig.show(scene, load, 0).await;
        scene.require(relay.is_running(), || "the relay has ended".into());
    })
    .await;
}
