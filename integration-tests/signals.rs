//! Told to stop at an unhandy moment.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{OUTBOXD, RelayConfig};
use crate::harness::workspace::{self, Process};
use crate::harness::{SOON, wait_until};
use crate::matrix::rig::{
    POLLED, Pair, Rig, STREAMED, TRANSACTION_ROWS, WINDOW_ROWS, await_publishing,
};

const SIGTERM: u32 = 15;

const GRACE: Duration = Duration::from_secs(4);
/// What is promised, and what a busy machine adds.
const ENDS_WITHIN: Duration = Duration::from_secs(4 + 2 + 1);

/// Its configuration comes through a pipe, later than the signal.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_told_to_stop_before_it_has_read_its_configuration_ends_with_0() {
    let folder = workspace::folder("early");
    let path = folder.join("outboxd.toml");
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.is_ok_and(|status| status.success()), "make a pipe");
    let mut command = Command::new(OUTBOXD);
    command.args(["run", "--config"]).arg(&path);
    let mut relay = Process::start(&mut command, &folder, "log", "KILL");
    wait_until("the relay heeds SIGTERM", SOON, async || {
        match catches(relay.id(), SIGTERM) {
            true => Ok(()),
            false => Err(relay
                .exited()
                .map_or("it runs".to_owned(), |end| end.to_string())),
        }
    })
    .await;
    relay.signal("TERM");
    let admin = format!("127.0.0.1:{}", workspace::free_port());
    let nowhere = "127.0.0.1:1";
    let config = RelayConfig::of("early", "postgres://early@127.0.0.1:2/early", nowhere)
        .set("admin.listen", admin);
    // Blocks until somebody reads.
    std::thread::spawn(move || fs::write(path, config.text()));
    let end = relay.wait(SOON).expect("the relay ends");
    let log = workspace::tail(&folder.join("log"), 20);
    assert_eq!(end.code(), Some(0), "{end}: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_keeps_its_grace_period_while_every_process_of_postgresql_is_frozen() {
    for pair in [STREAMED, POLLED] {
        stop_frozen(pair).await;
    }
}

async fn stop_frozen(pair: Pair) {
    let postgres = Postgres::start(USUAL);
    let mut rig = Rig::new(pair, &postgres, Kafka::shared().await).await;
    rig.set("shutdown.grace", format!("{}s", GRACE.as_secs()));
    let load = rig.load().await;
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    postgres.freeze();
    // Rows that were on their way are delivered, and their mark waits.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked_at = Instant::now();
    relay.signal("TERM");
    let end = relay.wait_exit(SOON);
    let took = asked_at.elapsed();
    postgres.thaw();
    let end = end.expect("the relay ends");
    eprintln!("{pair:?}: {took:?}");
    assert!(took < ENDS_WITHIN, "{pair:?} took {took:?}");
    assert_eq!(end.code(), Some(0), "{end}");
    relay.restart();
    rig.judge(load, WINDOW_ROWS + TRANSACTION_ROWS).await;
}

/// Whether a process has a handler for this signal.
///
/// Source: proc_pid_status(5), SigCgt.
fn catches(pid: u32, signal: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
