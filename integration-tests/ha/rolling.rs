//! Relays are replaced one by one under load, as every roll-out does, also by ones of the other mode.

use std::time::Duration;

use crate::harness::oracle::is_row_of_the_matrix;
use crate::harness::relay::Relay;
use crate::harness::topic::Read;
use crate::matrix::rig::{
    POLLED, Pair, Rig, SOON, STREAMED, WINDOW_ROWS, await_publishing, random_moment,
};
use crate::orders::wait_for_status;

/// The promise is two seconds, and less than one was measured; a machine with forty runnable threads took ten.
/// Whoever waited for the slot of a silent reader would take thirty.
fn pause_max() -> Duration {
    Duration::from_secs(if is_row_of_the_matrix() { 2 } else { 29 })
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_updates_of_two_streaming_replicas_repeat_nothing() {
    update(STREAMED, 5, pause_max()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_updates_of_two_polling_replicas_repeat_nothing() {
    update(POLLED, 5, pause_max()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_changes_of_the_mode_repeat_nothing() {
    change_mode(3, pause_max()).await;
}

/// Starts a replica, stops the older one in order, so many times; nothing comes twice and no pause is longer.
pub async fn update(pair: Pair, times: usize, pause_max: Duration) {
    let rig = Rig::shared(pair).await;
    roll(&rig, &vec![pair.0; times + 1], pause_max).await;
}

/// From replication to polling and back, so many times.
pub async fn change_mode(times: usize, pause_max: Duration) {
    let rig = Rig::shared(STREAMED).await;
    let there_and_back = ["polling", "replication"].repeat(times);
    roll(
        &rig,
        &[&["replication"][..], &there_and_back].concat(),
        pause_max,
    )
    .await;
}

async fn roll(rig: &Rig, modes: &[&str], pause_max: Duration) {
    let load = rig.load().await;
    let mut leader: Option<Relay> = None;
    for mode in modes {
        let next = Relay::start(&rig.config.clone().mode(mode));
        if let Some(mut old) = leader.take() {
            wait_for_status(&next, "it stands by", |status| status["role"] == "standby").await;
            random_moment(Duration::from_millis(400)).await;
            let ended = old.terminate();
            assert!(ended.success(), "{ended}");
        }
        await_publishing(&next, 0, SOON).await;
        leader = Some(next);
    }
    rig.judge(load, 0).await;
    let mut oracle = rig.oracle().await;
    oracle.verdict().await;
    let pause = longest_pause(oracle.reads());
    eprintln!("longest pause: {pause:?}");
    assert!(pause <= pause_max, "nothing was published for {pause:?}");
}

/// The longest time between two records, by when they were handed to the producer.
fn longest_pause(reads: &[Read]) -> Duration {
    let mut times: Vec<i64> = reads.iter().filter_map(|read| read.timestamp_ms).collect();
    assert!(times.len() > WINDOW_ROWS / 5, "{} records", times.len());
    times.sort_unstable();
    let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_millis(pauses.max().unwrap_or(0).unsigned_abs())
}
