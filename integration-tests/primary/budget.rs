//! WAL that the slot keeps: alarms before the disk is full, and the slot stays.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, Stop, USUAL};
use crate::harness::relay::Relay;
use crate::harness::workspace;
use crate::matrix::rig::{Rig, SOON, STREAMED, await_publishing};
use crate::orders::wait_for_status;

/// A transaction that stays open keeps the WAL, however much of it is confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn alarms_are_raised_at_half_and_four_fifths_of_the_budget_and_the_slot_stays() {
    let postgres = Postgres::start(USUAL);
    let mut rig = Rig::new(STREAMED, &postgres, Kafka::shared().await).await;
    let budget = 100 << 20;
    rig.config = rig.config.set("source.replication.wal_budget", "100MiB");
    let client = rig.client().await;
    let relay = rig.relay();
    let load = rig.load().await;
    await_publishing(&relay, 0, SOON).await;
    rig.await_streaming(&client).await;
    wait_for_alarm(&relay, "none").await;
    let idle = rig.client().await;
    let open = "BEGIN; INSERT INTO aggregate VALUES ('open', 0)";
    idle.batch_execute(open).await.expect("open a transaction");
    write_wal(&client, 60).await;
    let status = wait_for_alarm(&relay, "warning").await;
    assert_eq!(status["wal_budget"]["bytes"], budget);
    write_wal(&client, 30).await;
    wait_for_alarm(&relay, "critical").await;
    let metrics = relay.metrics().await;
    for line in [
        "outboxd_wal_alarm{alarm=\"critical\"} 1".to_owned(),
        "outboxd_wal_alarm{alarm=\"warning\"} 0".to_owned(),
        format!("outboxd_wal_budget_bytes {budget}"),
    ] {
        assert!(metrics.contains(&line), "no `{line}` in\n{metrics}");
    }
    idle.batch_execute("COMMIT").await.expect("commit");
    load.progress(20, SOON).await;
    // A checkpoint tells the slot which transactions are still open.
    client
        .batch_execute("CHECKPOINT")
        .await
        .expect("checkpoint");
    wait_for_alarm(&relay, "none").await;
    rig.judge(load, 0).await;
    let log = relay.log();
    for line in [
        "more than 50 % of the WAL budget",
        "more than 80 % of the WAL budget",
        "keeps less WAL again",
    ] {
        assert!(log.contains(line), "no `{line}` in\n{log}");
    }
}

/// With `max_slot_wal_keep_size` the server survives what no relay can prevent, and the alarms came before.
#[ignore = "mounts a file system: see `make faults`"]
#[tokio::test(flavor = "multi_thread")]
async fn a_small_disk_is_not_filled_by_a_slot_and_the_alarms_come_before() {
    let mut postgres = Postgres::start_with(
        USUAL,
        &[
            ("max_slot_wal_keep_size", "96MB"),
            ("min_wal_size", "32MB"),
            ("max_wal_size", "64MB"),
        ],
    );
    let Some(disk) = SmallDisk::below_wal_of(&mut postgres) else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let rig = Rig::new(STREAMED, &postgres, Kafka::shared().await).await;
    let client = rig.client().await;
    let relay = rig.relay();
    let load = rig.load().await;
    await_publishing(&relay, 0, SOON).await;
    rig.await_streaming(&client).await;
    let idle = rig.client().await;
    let open = "BEGIN; INSERT INTO aggregate VALUES ('open', 0)";
    idle.batch_execute(open).await.expect("open a transaction");
    write_wal(&client, 44).await;
    let status = wait_for_alarm(&relay, "warning").await;
    assert_eq!(status["wal_budget"]["bytes"], 96 << 20);
    write_wal(&client, 30).await;
    wait_for_alarm(&relay, "critical").await;
    load.stop().await;
    // Twice as much as the disk holds.
    for _ in 0..16 {
        write_wal(&client, 32).await;
        client
            .batch_execute("CHECKPOINT")
            .await
            .expect("checkpoint");
    }
    wait_for_alarm(&relay, "critical").await;
    drop(postgres);
    drop(disk);
}

/// A disk of 256 MB that holds nothing but `pg_wal`.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where nothing can be mounted.
    fn below_wal_of(postgres: &mut Postgres) -> Option<Self> {
        let at = workspace::folder("small-disk");
        if !did(
            "mount",
            &["-t", "tmpfs", "-o", "size=256m,mode=777", "none"],
            &at,
        ) {
            return None;
        }
        let disk = Self(at);
        postgres.stop(Stop::Fast);
        let wal = postgres.data().join("pg_wal");
        let moved = disk.0.join("pg_wal");
        workspace::copy_folder(&wal, &moved);
        fs::remove_dir_all(&wal).expect("remove the old folder");
        symlink(&moved, &wal).expect("link to the small disk");
        postgres.restart();
        Some(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        did("umount", &["-l"], &self.0);
    }
}

fn did(program: &str, arguments: &[&str], at: &Path) -> bool {
    let mut command = Command::new(program);
    let status = command.args(arguments).arg(at).status();
    status.is_ok_and(|status| status.success())
}

async fn wait_for_alarm(relay: &Relay, alarm: &str) -> Value {
    wait_for_status(relay, &format!("alarm: {alarm}"), |status| {
        status["wal_budget"]["alarm"] == alarm
    })
    .await
}

/// Writes so many MiB of WAL that concern no table.
async fn write_wal(client: &Client, mebibytes: i32) {
    let sql = "SELECT count(pg_logical_emit_message(false, 'filler', repeat('x', 1048576))) FROM generate_series(1, $1::int4)";
    let written = client.query_one(sql, &[&mebibytes]).await;
    written.expect("write WAL");
}
