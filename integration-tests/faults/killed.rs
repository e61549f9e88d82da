//! The relay is killed with SIGKILL at random moments.

use std::time::Duration;

use super::rig::{POLLED, Pair, Rig, SOON, STREAMED, WINDOW_ROWS, await_publishing, random_moment};

/// Rows of the largest transaction of the load.
const TRANSACTION_ROWS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_of_a_streaming_relay_lose_nothing() {
    kill(STREAMED, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_of_a_polling_relay_lose_nothing() {
    kill(POLLED, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_with_sent_at_by_replication_lose_nothing() {
    kill(Pair("replication", "sent_at"), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_with_delete_by_replication_lose_nothing() {
    kill(Pair("replication", "delete"), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_without_marks_by_replication_lose_nothing() {
    kill(Pair("replication", "none"), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_with_sent_at_by_polling_lose_nothing() {
    kill(Pair("polling", "sent_at"), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_with_delete_by_polling_lose_nothing() {
    kill(Pair("polling", "delete"), 3).await;
}

async fn kill(pair: Pair, kills: usize) {
    let rig = Rig::shared(pair).await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    let mut slowest = Duration::ZERO;
    for number in 0..kills {
        // Every third kill may hit a relay that has only just been started.
        if number % 3 != 2 {
            slowest = slowest.max(await_publishing(&relay, 0, SOON).await);
        }
        random_moment(Duration::from_millis(700)).await;
        relay.kill9();
        relay.restart();
    }
    slowest = slowest.max(await_publishing(&relay, 0, SOON).await);
    eprintln!("slowest restart: {slowest:?}");
    rig.judge(load, kills * (WINDOW_ROWS + TRANSACTION_ROWS))
        .await;
    assert!(
        slowest < Duration::from_secs(10),
        "publishing again took {slowest:?}"
    );
}
