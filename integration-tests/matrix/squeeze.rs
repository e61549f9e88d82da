//! What the machine denies the relay: processor time, memory, file descriptors, a steady clock, a log that is read.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::cgroup::Cgroup;
use super::machine;
use super::rig::{Pair, Rig, SOON, TRANSACTION_ROWS, WINDOW_ROWS, await_publishing, published};
use super::scene::{Scene, both};
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::workspace;
use crate::orders::wait_for_status;

/// The cgroup freezer stops every thread at once, and a standby takes over; the frozen one wakes as a zombie.
pub async fn frozen_group(scene: &Scene) {
    both(scene, async |scene, pair| {
        let rig = Rig::shared(pair).await;
        let client = rig.client().await;
        let load = rig.load().await;
        let (first, group) = (rig.relay(), Cgroup::create("freezer").expect("a group"));
        group.take(first.id());
        await_publishing(&first, 0, SOON).await;
        if pair.is_streamed() {
            rig.await_streaming(&client).await;
        }
        let second = rig.relay();
        wait_for_status(&second, "it stands by", |status| {
            status["role"] == "standby"
        })
        .await;
        group.freeze();
        scene.ran();
        let took = await_publishing(&second, 0, SOON).await;
        let limit = if pair.is_streamed() { 32 } else { 6 };
        scene.took(
            &format!("taken over, {}", pair.0),
            took,
            Duration::from_secs(limit),
        );
        group.thaw();
        wait_for_status(&first, "it stands by", |status| status["role"] == "standby").await;
        load.stop().await;
        rig.verdict(scene, WINDOW_ROWS + TRANSACTION_ROWS).await;
    })
    .await;
}

/// A twentieth of a processor, until the lag has grown.
pub async fn starved(scene: &Scene) {
    both(scene, async |scene, pair| {
        let rig = Rig::shared(pair).await;
        let load = rig.load().await;
        let (relay, group) = (rig.relay(), Cgroup::create("cpu").expect("a group"));
        group.take(relay.id());
        await_publishing(&relay, 0, SOON).await;
        group.limit_cpu(5);
        scene.ran();
        tokio::time::sleep(Duration::from_secs(scene.pick(15, 40, 120))).await;
        group.limit_cpu(100);
        let before = published(&relay).await;
        await_publishing(&relay, before + 100, SOON).await;
        let log = relay.log();
        let is_timeout =
            log.contains("terminating walsender") || log.contains("replication timeout");
        scene.require(!is_timeout, || "the walsender gave the relay up".into());
        rig.show(scene, load, 0).await;
    })
    .await;
}

/// Rows of 64 KB without end, Kafka away for a while, and a group that is killed above 128 MiB.
pub async fn little_memory(scene: &Scene) {
    let mut kafka = Kafka::start();
    let postgres = Postgres::shared(USUAL).await;
    let rigs = [
        Rig::new(scene.streamed(), postgres, &kafka).await,
        Rig::new(scene.polled(), postgres, &kafka).await,
    ];
    let groups = [(), ()].map(|()| Cgroup::create("memory").expect("a group"));
    let mut relays = Vec::new();
    let mut loads = Vec::new();
    for (rig, group) in rigs.iter().zip(&groups) {
        group.limit_memory(128 << 20);
        let relay = rig.relay();
        group.take(relay.id());
        relays.push(relay);
        loads.push(rig.load_of(60_000..65_536).await);
    }
    for relay in &relays {
        await_publishing(relay, 0, SOON).await;
    }
    kafka.kill();
    scene.ran();
    tokio::time::sleep(Duration::from_secs(scene.pick(10, 20, 120))).await;
    kafka.restart();
    for (rig, load) in rigs.iter().zip(loads) {
        rig.show(scene, load, 0).await;
    }
    for relay in &mut relays {
        scene.remark(format!(
            "at most {} MiB resident",
            relay.rss_bytes_max() >> 20
        ));
        scene.require(relay.is_running(), || {
            "a relay was killed for its memory".into()
        });
    }
}

/// No descriptor is left when the connections must be made anew.
pub async fn no_descriptors(scene: &Scene) {
    both(scene, async |scene, pair| {
        let mut rig = Rig::shared(pair).await;
        let proxy = rig.through_proxy().await;
        let load = rig.load().await;
        let mut relay = rig.relay();
        await_publishing(&relay, 0, SOON).await;
        limit_descriptors(&relay, 10);
        proxy.cut();
        scene.ran();
        relay.wait_for_log("Too many open files", SOON).await;
        tokio::time::sleep(Duration::from_secs(scene.pick(1, 5, 30))).await;
        limit_descriptors(&relay, 1_000);
        let before = published(&relay).await;
        let took = await_publishing(&relay, before + 100, SOON).await;
        scene.took("publishing again", took, Duration::from_secs(20));
        scene.require(relay.is_running(), || "the relay has ended".into());
        rig.show(scene, load, 0).await;
    })
    .await;
}

fn limit_descriptors(relay: &Relay, soft: u32) {
    let arguments = [format!("--pid={}", relay.id()), format!("--nofile={soft}:")];
    let done = Command::new("prlimit").args(arguments).status();
    assert!(done.is_ok_and(|status| status.success()), "prlimit");
}

/// The wall clock jumps by a day and back, then by seconds, again and again.
pub async fn clock_jumps(scene: &Scene) {
    let library = machine::faketime().expect("libfaketime");
    both(scene, async |scene, pair| {
        let rig = Rig::shared(pair).await;
        let load = rig.load().await;
        let clock = workspace::folder("clock").join("offset");
        let set = |offset: &str| fs::write(&clock, offset).expect("set the clock");
        set("+0");
        let environment = [
            ("LD_PRELOAD", library.as_str()),
            (
                "FAKETIME_TIMESTAMP_FILE",
                clock.to_str().expect("folders of this run are UTF-8"),
            ),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let mut relay = Relay::start_with(&rig.config, &environment);
        await_publishing(&relay, 0, SOON).await;
        let epoch = relay.metric("outboxd_lease_epoch").await;
        for offset in ["-1d", "+0", "+5", "-5", "+5", "-5", "+0"] {
            set(offset);
            scene.ran();
            tokio::time::sleep(Duration::from_secs(2)).await;
            let before = published(&relay).await;
            await_publishing(&relay, before, SOON).await;
        }
        // Kafka takes nothing from the day after; that is no row's fault.
        set("+1d");
        scene.ran();
        tokio::time::sleep(Duration::from_secs(scene.pick(3, 5, 20))).await;
        set("+0");
        let before = published(&relay).await;
        await_publishing(&relay, before, 2 * SOON).await;
        let now = relay.metric("outboxd_lease_epoch").await;
        scene.require(now == epoch, || {
            format!("the lease changed hands: {epoch:?}, then {now:?}")
        });
        scene.require(relay.is_running(), || "the relay has ended".into());
        rig.show(scene, load, 0).await;
    })
    .await;
}

/// Where the log goes to, nobody reads, or there is no room.
pub async fn log_blocked(scene: &Scene) {
    let pipe = workspace::folder("pipe").join("log");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    let full = PathBuf::from("/dev/full");
    // Opened for both ways, so that the open does not wait for a reader.
    let script = r#"exec "$@" 1<>"$0" 2>&1"#;
    for (pair, to) in [
        (scene.streamed(), &pipe),
        (scene.polled(), &pipe),
        (scene.streamed(), &full),
        (scene.polled(), &full),
    ] {
        write_log_to(scene, pair, script, to).await;
    }
}

async fn write_log_to(scene: &Scene, pair: Pair, script: &str, to: &std::path::Path) {
    let mut rig = Rig::shared(pair).await;
    rig.set("log.level", "trace");
    let to = to.to_str().expect("folders of this run are UTF-8");
    let mut relay = Relay::start_under(&rig.config, &["sh", "-c", script, to]);
    let load = rig.load().await;
    scene.ran();
    await_publishing(&relay, scene.pick(300, 1_000, 5_000), SOON).await;
    rig.show(scene, load, 0).await;
    let ended = relay.terminate();
    scene.require(ended.success(), || format!("the relay ended with {ended}"));
}
