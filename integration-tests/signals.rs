//! Told to stop at an unhandy moment.

use std::fs;
use std::process::Command;

use crate::harness::relay::{OUTBOXD, RelayConfig};
use crate::harness::workspace::{self, Process};
use crate::harness::{SOON, wait_until};

const SIGTERM: u32 = 15;

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

/// Whether a process has a handler for this signal.
///
/// Source: proc_pid_status(5), SigCgt.
fn catches(pid: u32, signal: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
