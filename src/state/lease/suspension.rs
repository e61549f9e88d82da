//! A lease that runs out: its holder publishes nothing from that moment on, whatever the keeper waits for.
//!
//! Owns the change from leader to suspended and what is said of it. Never talks to PostgreSQL.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{LeaseState, Role, since_boot};
use crate::text::Episodes;

/// How often a suspension that was not said yet is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Turns a leader into a suspended one the moment its lease runs out; ends by being aborted.
pub(super) async fn watch(sender: watch::Sender<LeaseState>) {
    let mut state = sender.subscribe();
    let mut episodes = Episodes::default();
    loop {
        let role = state.borrow_and_update().role.clone();
        let due = match role {
            Role::Leader { epoch, valid_until } => {
                tell_end(episodes.end(since_boot()), epoch);
                valid_until.saturating_sub(since_boot())
            }
            Role::Suspended { .. } => {
                tell_begin(episodes.goes_on(since_boot()));
                LOOK_EVERY
            }
            _ => {
                episodes.forget();
                Duration::MAX
            }
        };
        if due.is_zero() {
            if sender.send_if_modified(suspend) {
                tell_begin(episodes.begin(since_boot()));
            }
            continue;
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = sleep(due) => {}
        }
    }
}

fn tell_begin(times: Option<u64>) {
    if let Some(times) = times {
        warn!(
            times,
            "publishing paused: the lease was not renewed for `lease.ttl`"
        );
    }
}

fn tell_end(lasted: Option<Duration>, epoch: i64) {
    if let Some(lasted) = lasted {
        let elapsed_ms = lasted.as_millis() as u64;
        info!(epoch, elapsed_ms, "the lease is renewed again");
    }
}

fn suspend(state: &mut LeaseState) -> bool {
    match state.role {
        Role::Leader { epoch, valid_until } if since_boot() >= valid_until => {
            state.role = Role::Suspended { epoch };
            true
        }
        _ => false,
    }
}
