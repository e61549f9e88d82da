//! The relay is stopped with SIGTERM under load and started again, as every roll-out does.

use std::time::{Duration, Instant};

use super::rig::{POLLED, Pair, Rig, SOON, STREAMED, await_publishing, random_moment};

/// `shutdown.grace` and five seconds to leave.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn ten_graceful_stops_of_a_streaming_relay_repeat_nothing() {
    stop(STREAMED, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_graceful_stops_of_a_polling_relay_repeat_nothing() {
    stop(POLLED, 10).await;
}

async fn stop(pair: Pair, stops: usize) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    let mut slowest = Duration::ZERO;
    for _ in 0..stops {
        await_publishing(&relay, 0, SOON).await;
        random_moment(Duration::from_millis(400)).await;
        let asked_at = Instant::now();
        let status = relay.terminate();
        slowest = slowest.max(asked_at.elapsed());
        assert!(status.success(), "{status}");
        assert_ne!(
            rig.is_slot_active(&client).await,
            Some(true),
            "the slot is still read"
        );
        relay.restart();
    }
    eprintln!("slowest stop: {slowest:?}");
    assert!(slowest < ENDS_WITHIN, "a stop took {slowest:?}");
    rig.judge(load, 0).await;
}
