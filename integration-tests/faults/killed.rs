//! The relay is killed with SIGKILL at random moments.

use std::time::Duration;

use super::rig::{
    POLLED, Pair, Rig, SOON, STREAMED, WINDOW_ROWS, await_publishing, published, random_moment,
};
use crate::harness::load::write_rows;
use crate::harness::order_writer::Fate;
use crate::harness::wait_until;

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

/// The window counts rows until they are marked, so the size of a transaction does not matter.
#[tokio::test(flavor = "multi_thread")]
async fn kills_amid_a_large_transaction_repeat_one_window_each() {
    tokio::join!(kill_amid(STREAMED), kill_amid(POLLED));
}

async fn kill_amid(pair: Pair) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let done = write_rows(&client, 0, 20_000, Fate::Commit).await;
    done.expect("write a large transaction");
    for _ in 0..4 {
        let before = published(&relay).await;
        await_publishing(&relay, before + fastrand::u64(0..2_000), SOON).await;
        relay.kill9();
        relay.restart();
    }
    rig.judge(load, 4 * WINDOW_ROWS).await;
}

async fn kill(pair: Pair, kills: usize) {
    let rig = Rig::shared(pair).await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    let mut slowest = Duration::ZERO;
    if pair.1 == "none" {
        // Until the stream has taken over, nothing is recorded and a kill begins with the table again.
        let client = rig.client().await;
        wait_until("the slot is read", SOON, async || {
            match rig.is_slot_active(&client).await {
                Some(true) => Ok(()),
                other => Err(format!("active: {other:?}")),
            }
        })
        .await;
    }
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
        slowest < Duration::from_secs(15),
        "publishing again took {slowest:?}"
    );
}
