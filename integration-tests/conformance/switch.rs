//! Stopping in order, starting again, and changing the mode in between: nothing is lost and nothing comes twice.

use super::order::busy;
use super::scene::{Pair, SOON, Scene, stop};
use crate::harness::load::Load;
use crate::harness::relay::Relay;

/// Writers that go on until they are stopped, slowly enough to leave the processors to the relay.
fn endless() -> Load {
    Load {
        transactions: None,
        writers: 4,
        pause: std::time::Duration::from_millis(10),
        ..busy(0)
    }
}

pub async fn graceful_restarts_repeat_nothing(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    let load = endless().start(&scene.database.url).await;
    for _ in 0..3 {
        load.progress(40, SOON).await;
        stop(&mut relay);
        load.progress(10, SOON).await;
        relay.restart();
    }
    load.stop().await;
    scene.judge_to_the_end(&mut relay).await;
}

/// From replication to polling and back, while writers go on.
pub async fn switching_the_mode_repeats_nothing(pair: Pair) {
    let scene = Scene::new(pair).await;
    let load = endless().start(&scene.database.url).await;
    for mode in ["replication", "polling", "replication", "polling"] {
        let mut relay = Relay::start(&scene.config.clone().mode(mode));
        load.progress(40, SOON).await;
        wait_until_publishing(&relay).await;
        load.progress(20, SOON).await;
        stop(&mut relay);
        load.progress(10, SOON).await;
    }
    load.stop().await;
    let mut relay = scene.start();
    scene.judge_to_the_end(&mut relay).await;
}

async fn wait_until_publishing(relay: &Relay) {
    super::start::wait_for_state(relay, "publishing").await;
}
