//! What every integration test stands on: servers, the relay as a process, load, and the oracle that judges a run.
//!
//! Servers are plain child processes. Nothing here survives the test process, however it ends: see `workspace`.
//! Starting and stopping block the calling thread, so tests use `#[tokio::test(flavor = "multi_thread")]`.
#![allow(dead_code, reason = "each subject uses a part of the harness")]

pub mod certificates;
pub mod cluster;
pub mod kafka;
pub mod load;
pub mod murmur2;
pub mod oracle;
pub mod order_writer;
pub mod postgres;
pub mod proxy;
pub mod relay;
pub mod standby;
pub mod topic;
pub mod workspace;

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often a condition is looked at again.
pub const POLL: Duration = Duration::from_millis(50);

/// How long a test waits for what a quiet machine does at once: a test that waits so long has failed.
///
/// Generous, for it costs nothing where the wait succeeds, and other tests keep every processor busy.
pub const SOON: Duration = Duration::from_secs(60);

/// Polls until the probe answers `Ok`, and panics with `what` and the last observation when `timeout` has passed.
///
/// The only way for a test to wait: a fact, never a bare sleep.
pub async fn wait_until<T, O: Display>(
    what: &str,
    timeout: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, O>,
) -> T {
    let started_at = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(observed) if started_at.elapsed() >= timeout => {
                panic!("waited {timeout:?} until {what}; last seen: {observed}")
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// `wait_until` for callers without a runtime.
pub fn wait_until_blocking<T, O: Display>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<T, O>,
) -> T {
    let started_at = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(observed) if started_at.elapsed() >= timeout => {
                panic!("waited {timeout:?} until {what}; last seen: {observed}")
            }
            Err(_) => std::thread::sleep(POLL / 2),
        }
    }
}
