//! What happens to Kafka: killed, frozen, slow, without its replicas.

use std::time::Duration;

use super::postgres::Both;
use super::rig::SOON;
use super::scene::Scene;
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};

/// Killed for a moment each time, then once for longer than the relay stays on its slot.
pub async fn broker_away(scene: &Scene) {
    let mut kafka = Kafka::start();
    let both = Both::new(Postgres::shared(USUAL).await, &kafka).await;
    for pause in scene.pick(vec![0, 0], vec![0, 5, 40], vec![5, 600]) {
        kafka.kill();
        scene.ran();
        tokio::time::sleep(Duration::from_secs(pause)).await;
        for load in &both.loads {
            load.progress(50, SOON).await;
        }
        kafka.restart();
        both.await_publishing(0).await;
    }
    both.judge(scene, 0).await;
}

pub async fn broker_frozen(scene: &Scene) {
    let mut kafka = Kafka::start();
    let both = Both::new(Postgres::shared(USUAL).await, &kafka).await;
    kafka.freeze();
    scene.ran();
    tokio::time::sleep(Duration::from_secs(scene.pick(20, 20, 120))).await;
    kafka.thaw();
    both.judge(scene, 0).await;
}
