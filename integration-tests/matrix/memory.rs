//! Nothing can be published and rows keep coming.

use std::time::{Duration, Instant};

use super::bounded::RSS_MAX;
use super::rig::{Rig, SOON, await_publishing};
use super::scene::Scene;
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};

pub async fn bounded_while_kafka_is_away(scene: &Scene) {
    let mut kafka = Kafka::start();
    let postgres = Postgres::shared(USUAL).await;
    let rigs = [
        Rig::new(scene.streamed(), postgres, &kafka).await,
        Rig::new(scene.polled(), postgres, &kafka).await,
    ];
    let relays = rigs.each_ref().map(Rig::relay);
    let loads = [
        rigs[0].load_of(60_000..65_536).await,
        rigs[1].load_of(60_000..65_536).await,
    ];
    for relay in &relays {
        await_publishing(relay, 0, SOON).await;
    }
    kafka.kill();
    scene.ran();
    let killed_at = Instant::now();
    while killed_at.elapsed() < Duration::from_secs(scene.pick(30, 40, 600)) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (relay, rig) in relays.iter().zip(&rigs) {
            let rss = relay.rss_bytes();
            scene.require(rss <= RSS_MAX, || {
                format!("{:?}: {} MiB", rig.pair, rss >> 20)
            });
        }
    }
    kafka.restart();
    for (rig, load) in rigs.iter().zip(loads) {
        rig.show(scene, load, 0).await;
    }
    for relay in &relays {
        let rss = relay.rss_bytes_max();
        scene.remark(format!("at most {} MiB", rss >> 20));
        scene.require(rss <= RSS_MAX, || {
            format!("{} MiB while it drained", rss >> 20)
        });
    }
}
