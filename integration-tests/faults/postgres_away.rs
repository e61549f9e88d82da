//! PostgreSQL is stopped and started again while the relay runs.

use std::time::Duration;

use super::rig::{POLLED, Rig, SOON, STREAMED, await_publishing, published, random_moment};
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, Stop, USUAL};

/// PostgreSQL 15 sends confirmed transactions again after every restart: the ledger must know them.
#[tokio::test(flavor = "multi_thread")]
async fn crashes_and_restarts_of_postgresql_lose_and_repeat_nothing() {
    let mut postgres = Postgres::start(USUAL);
    let kafka = Kafka::shared().await;
    let rigs = [
        Rig::new(STREAMED, &postgres, kafka).await,
        Rig::new(POLLED, &postgres, kafka).await,
    ];
    let mut relays = rigs.each_ref().map(Rig::relay);
    let loads = [rigs[0].load().await, rigs[1].load().await];
    let mut slowest = Duration::ZERO;
    let stops = [
        Stop::Immediate,
        Stop::Fast,
        Stop::Immediate,
        Stop::Fast,
        Stop::Immediate,
    ];
    for relay in &relays {
        await_publishing(relay, 0, SOON).await;
    }
    for stop in stops {
        random_moment(Duration::from_millis(500)).await;
        let took = postgres.stop(stop);
        assert!(took < Duration::from_secs(15), "{stop:?} took {took:?}");
        postgres.restart();
        for relay in &relays {
            let before = published(relay).await;
            slowest = slowest.max(await_publishing(relay, before + 50, SOON).await);
        }
    }
    eprintln!("slowest return: {slowest:?}");
    for (rig, load) in rigs.iter().zip(loads) {
        rig.judge(load, 0).await;
    }
    assert!(relays.iter_mut().all(|relay| relay.is_running()));
    assert!(
        slowest < Duration::from_secs(15),
        "publishing again took {slowest:?}"
    );
}
