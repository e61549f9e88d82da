//! The relay's connections to PostgreSQL end, one and all, again and again.

use std::time::{Duration, Instant};

use super::rig::{POLLED, Pair, Rig, SOON, STREAMED, await_publishing, published, random_moment};
use crate::harness::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn terminated_backends_of_a_streaming_relay_repeat_nothing() {
    terminate(STREAMED, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminated_backends_of_a_polling_relay_repeat_nothing() {
    terminate(POLLED, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminated_backends_with_marked_rows_repeat_nothing() {
    tokio::join!(
        terminate(Pair("replication", "sent_at"), 5),
        terminate(Pair("polling", "delete"), 5)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_every_second_or_two_do_not_stop_a_relay() {
    tokio::join!(cut(STREAMED), cut(POLLED));
}

async fn terminate(pair: Pair, times: usize) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..times {
        random_moment(Duration::from_millis(500)).await;
        for pid in rig.backends(&client).await {
            let done = client
                .execute("SELECT pg_terminate_backend($1)", &[&pid])
                .await;
            done.expect("terminate a backend");
        }
        let before = published(&relay).await;
        slowest = slowest.max(await_publishing(&relay, before + 100, SOON).await);
    }
    eprintln!("slowest return: {slowest:?}");
    rig.judge(load, 0).await;
    assert!(
        slowest < Duration::from_secs(8),
        "publishing again took {slowest:?}"
    );
}

/// Some twelve cuts; a relay that backs off further with each one would have published next to nothing.
async fn cut(pair: Pair) {
    let mut rig = Rig::shared(pair).await;
    let (host, rest) = rig
        .database
        .url
        .split_once("@127.0.0.1:")
        .expect("a URL over TCP");
    let (port, name) = rest.split_once('/').expect("a URL with a database");
    let proxy = Proxy::start(port.parse().expect("a port")).await;
    let url = format!("{host}@127.0.0.1:{}/{name}", proxy.port);
    rig.config = rig.config.set("source.url", url.as_str());
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let started_at = Instant::now();
    let (mut cuts, mut fruitful) = (0, 0);
    while started_at.elapsed() < Duration::from_secs(18) {
        let before = published(&relay).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1_000..2_000))).await;
        fruitful += usize::from(published(&relay).await > before);
        proxy.cut();
        cuts += 1;
    }
    eprintln!("{fruitful} of {cuts} pauses between cuts were used");
    assert!(
        fruitful * 3 > cuts,
        "only {fruitful} of {cuts} pauses between cuts were used"
    );
    rig.judge(load, 0).await;
}
