//! A streaming and a polling relay under load on the same servers.

use std::time::{Duration, Instant};

use super::bounded::RSS_MAX;
use super::rig::{Rig, SOON, await_publishing, published};
use super::scene::Scene;
use crate::harness::cluster::Cluster;
use crate::harness::kafka::Kafka;
use crate::harness::load::Running;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::proxy::Proxy;
use crate::harness::relay::Relay;

/// A streaming and a polling relay under load on one server.
pub struct Both {
    pub rigs: [Rig; 2],
    pub relays: [Relay; 2],
    pub loads: [Running; 2],
}

impl Both {
    pub async fn new(scene: &Scene, postgres: &Postgres, kafka: &Kafka) -> Self {
        Self::of([
            Rig::new(scene.streamed(), postgres, kafka).await,
            Rig::new(scene.polled(), postgres, kafka).await,
        ])
        .await
    }

    /// Behind a proxy of `Kafka::start_behind_proxy`.
    pub async fn behind_proxy(scene: &Scene, kafka: &Kafka, proxy: &Proxy) -> Self {
        let postgres = Postgres::shared(USUAL).await;
        let mut rigs = [
            Rig::new(scene.streamed(), postgres, kafka).await,
            Rig::new(scene.polled(), postgres, kafka).await,
        ];
        for rig in &mut rigs {
            rig.through_kafka_proxy(proxy);
        }
        Self::of(rigs).await
    }

    /// On three brokers, their topics with so many replicas of each partition.
    pub async fn on_cluster(
        scene: &Scene,
        cluster: &Cluster,
        replicas: i32,
        settings: &[(&str, &str)],
    ) -> Self {
        Self::of([
            Rig::on_cluster(scene.streamed(), cluster, replicas, settings).await,
            Rig::on_cluster(scene.polled(), cluster, replicas, settings).await,
        ])
        .await
    }

    async fn of(rigs: [Rig; 2]) -> Self {
        let relays = rigs.each_ref().map(Rig::relay);
        let loads = [rigs[0].load().await, rigs[1].load().await];
        let both = Self {
            rigs,
            relays,
            loads,
        };
        both.await_publishing(0).await;
        both
    }

    /// Waits until each relay has published more than `rows` from now on, and gives the longest time.
    pub async fn await_publishing(&self, rows: u64) -> Duration {
        let started_at = Instant::now();
        for relay in &self.relays {
            let before = published(relay).await;
            await_publishing(relay, before + rows, SOON).await;
        }
        started_at.elapsed()
    }

    /// What each relay holds resident now, in MiB.
    pub fn rss_mib(&self) -> [u64; 2] {
        self.relays.each_ref().map(|relay| relay.rss_bytes() >> 20)
    }

    /// Judges both, which must have lived through it within their memory.
    pub async fn judge(mut self, scene: &Scene, duplicates_max: usize) {
        for (rig, load) in self.rigs.iter().zip(self.loads) {
            rig.show(scene, load, duplicates_max).await;
        }
        for relay in &mut self.relays {
            scene.require(relay.is_running(), || "a relay has ended".into());
            let rss = relay.rss_bytes_max();
            scene.require(rss <= RSS_MAX, || format!("{} MiB resident", rss >> 20));
        }
    }
}
