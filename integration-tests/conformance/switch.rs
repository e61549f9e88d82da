//! Stopping in order, starting again, and changing the mode in between: nothing is lost and nothing comes twice.

use super::order::busy;
use super::scene::{Pair, SOON, Scene, execute, stop};
use crate::harness::load::{Load, write_rows};
use crate::harness::order_writer::Fate;
use crate::harness::proxy::Proxy;
use crate::harness::relay::Relay;

/// Of a transaction that is cut: some batches of the stream.
const ROWS: usize = 10_000;

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

/// SIGTERM comes while every connection to PostgreSQL is being cut: what Kafka acknowledged is marked in a session that is
/// opened for it.
pub async fn stops_that_meet_a_lost_connection_repeat_nothing(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    let load = endless().start(&scene.database.url).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'outboxd%'";
    for _ in 0..4 {
        load.progress(40, SOON).await;
        execute(&scene.client, cut).await;
        stop(&mut relay);
        load.progress(10, SOON).await;
        relay.restart();
    }
    load.stop().await;
    // Without marks what was in flight comes again after a lost connection.
    let repeated = if pair.mark == "none" { 1_000 } else { 0 };
    scene.judge_to_the_end_with(&mut relay, repeated).await;
}

/// A transaction comes slowly, and stands still when some of its rows are in Kafka: the relay is asked to stop there.
pub async fn a_stop_within_a_transaction_repeats_nothing(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    let proxy = Proxy::start(scene.database.port()).await;
    let url = scene.database.url_through(&proxy);
    scene.config = scene.config.clone().set("source.url", url);
    let mut relay = scene.start_steady().await;
    proxy.set(|weather| {
        weather.is_for_replication = true;
        weather.to_client.bytes_per_second = 100_000;
    });
    let written = write_rows(&scene.client, 1, ROWS, Fate::Commit).await;
    written.expect("write rows");
    let published = scene.wait_for(&mut scene.reader(), 1).await.len();
    proxy.set(|weather| weather.to_client.is_held = true);
    relay.signal("TERM");
    relay.wait_for_log("draining", SOON).await;
    assert!(published < ROWS, "the transaction was not cut");
    proxy.clear();
    let status = relay.wait_exit(SOON).expect("the relay ends");
    assert!(status.success(), "the relay ended with {status}");
    relay.restart();
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
