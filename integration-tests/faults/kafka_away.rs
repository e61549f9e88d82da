//! Kafka is killed, or frozen with its connections open.

use std::time::Duration;

use super::rig::{POLLED, Rig, SOON, STREAMED, await_publishing, published};
use crate::harness::kafka::Kafka;
use crate::harness::load::Running;
use crate::harness::postgres::{Postgres, Stop, USUAL};
use crate::harness::relay::Relay;

/// A streaming and a polling relay under load on one broker.
struct Both {
    rigs: [Rig; 2],
    relays: [Relay; 2],
    loads: [Running; 2],
}

impl Both {
    async fn new(postgres: &Postgres, kafka: &Kafka) -> Self {
        let rigs = [
            Rig::new(STREAMED, postgres, kafka).await,
            Rig::new(POLLED, postgres, kafka).await,
        ];
        let relays = rigs.each_ref().map(Rig::relay);
        let loads = [rigs[0].load().await, rigs[1].load().await];
        let both = Self {
            rigs,
            relays,
            loads,
        };
        both.await_publishing().await;
        both
    }

    async fn await_publishing(&self) {
        for relay in &self.relays {
            let before = published(relay).await;
            await_publishing(relay, before, 2 * SOON).await;
        }
    }

    /// Nothing is lost or repeated, and the relays have lived through it.
    async fn judge(mut self) {
        for (rig, load) in self.rigs.iter().zip(self.loads) {
            rig.judge(load, 0).await;
        }
        assert!(self.relays.iter_mut().all(|relay| relay.is_running()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_costs_and_repeats_nothing() {
    let mut kafka = Kafka::start();
    let both = Both::new(Postgres::shared(USUAL).await, &kafka).await;
    for _ in 0..2 {
        kafka.kill();
        for load in &both.loads {
            load.progress(50, SOON).await;
        }
        kafka.restart();
        both.await_publishing().await;
    }
    both.judge().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_frozen_for_20_seconds_costs_and_repeats_nothing() {
    let mut kafka = Kafka::start();
    let both = Both::new(Postgres::shared(USUAL).await, &kafka).await;
    kafka.freeze();
    tokio::time::sleep(Duration::from_secs(20)).await;
    kafka.thaw();
    both.judge().await;
}

/// A primary that can't be stopped is an outage of its own: twice, before the relay has left the slot and after.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_frozen_for_40_seconds_does_not_keep_postgresql_from_stopping() {
    let mut kafka = Kafka::start();
    let mut postgres = Postgres::start(USUAL);
    let both = Both::new(&postgres, &kafka).await;
    kafka.freeze();
    for pause in [5, 32] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        let took = postgres.stop(Stop::Fast);
        eprintln!("the stop took {took:?}");
        postgres.restart();
        assert!(took < Duration::from_secs(15), "the stop took {took:?}");
    }
    kafka.thaw();
    both.judge().await;
}
