//! A log that nobody reads, and no file descriptor left.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use super::rig::{LENIENT, Rig};
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;

const STREAMED: (&str, &str) = ("replication", "ledger");

/// A pipe that is full after 64 kB, and a file on a disk that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_blocks_or_fails_neither_stops_nor_ends_the_relay() {
    let mut pipe = None;
    publish_with(|folder| {
        let path = folder.join("log");
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .is_ok_and(|made| made.success())
        );
        // Both ends, so that opening it for the relay does not wait for a reader.
        pipe = Some(
            File::options()
                .read(true)
                .write(true)
                .open(path)
                .expect("open a pipe"),
        );
    })
    .await;
    drop(pipe);
    publish_with(|folder| {
        std::os::unix::fs::symlink("/dev/full", folder.join("log")).expect("a full disk");
    })
    .await;
}

async fn publish_with(prepare: impl FnOnce(&Path)) {
    let postgres = Postgres::shared(USUAL).await;
    let mut rig = Rig::new(postgres, STREAMED, LENIENT, |config| {
        config.set("log.level", "trace")
    })
    .await;
    let mut relay = Relay::start_in(&rig.config, prepare);
    rig.pass("first").await;
    let many = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
                SELECT 'row-' || n, 'order', n, 'placed', '{}' FROM generate_series(1, 5000) n";
    rig.run(many).await;
    let reads = rig.pass("last").await;
    assert_eq!(reads.len(), 5_002);
    assert!(
        relay
            .metric("outboxd_log_lines_dropped_total")
            .await
            .unwrap_or_default()
            > 0.0
    );
    assert!(relay.terminate().success(), "a log can't hold up the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_file_descriptors_the_relay_says_so_and_recovers() {
    let postgres = Postgres::shared(USUAL).await;
    let mut rig = Rig::new(postgres, STREAMED, LENIENT, |config| config).await;
    let mut relay = Relay::start(&rig.config);
    rig.pass("first").await;
    let limit = |descriptors: &str| {
        let limit = format!("--nofile={descriptors}:");
        let set = Command::new("prlimit")
            .args(["--pid", &relay.id().to_string(), &limit])
            .status();
        assert!(set.is_ok_and(|set| set.success()), "set a limit");
    };
    limit("5");
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name LIKE 'outboxd%'";
    rig.run(cut).await;
    relay
        .wait_for_log("Too many open files", crate::orders::ARRIVAL)
        .await;
    limit("1024");
    let reads = rig.pass("last").await;
    assert_eq!(reads.len(), 2);
    assert!(relay.is_running());
}
