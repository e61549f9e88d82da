//! Watches what the slot keeps on the primary, while a session runs and while none can.
//!
//! Owns the budget and its alarms, and keeps a slot that nobody reads from `idle_replication_slot_timeout`. Never drops
//! or moves the slot: that is a person's decision, or the server's.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, error, info, warn};

use crate::config::{ReplicationConfig, UrlSource};
use crate::observe::status::{StatusCell, WalAlarm, WalBudget};
use crate::postgres::slot::{self, Slot, SlotError};
use crate::postgres::{self, PostgresError};
use crate::state::lease::LeaseState;
use crate::text::chain;

/// How often the server is asked: a busy primary writes about a gigabyte meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// A slot that is far behind may take the server longer to step on; it counts as read all the same.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '3s'";
/// Shares of the budget, in percent.
const WARNING_AT: u64 = 50;
const CRITICAL_AT: u64 = 80;
/// An alarm ends so many percent below the share that began it.
const MARGIN: u64 = 5;

/// The settings that decide how long and how much a slot may keep; the second since PostgreSQL 18.
const SETTINGS: &str = "
    SELECT max(pg_catalog.pg_size_bytes(setting || unit)) FILTER (WHERE name = 'max_slot_wal_keep_size' AND setting <> '-1') AS kept,
           (max(extract(epoch FROM (setting || unit)::interval)) FILTER (WHERE name = 'idle_replication_slot_timeout'))::float8 AS idle
    FROM pg_catalog.pg_settings WHERE name IN ('max_slot_wal_keep_size', 'idle_replication_slot_timeout')";

/// The task that looks; dropping it ends the task.
pub struct WalWatch {
    task: JoinHandle<()>,
}

/// What the server's settings allow a slot.
struct Settings {
    /// `max_slot_wal_keep_size` in bytes, where it is not unlimited.
    kept_bytes_max: Option<u64>,
    /// `idle_replication_slot_timeout`, where there is one: the server takes a slot that nobody read for so long.
    idle_timeout: Option<Duration>,
}

/// A look that failed.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("cannot read the connection URL")]
    Url(#[source] crate::config::ConfigError),
    #[error("cannot ask what the slot keeps")]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Slot(#[from] SlotError),
}

impl WalWatch {
    /// Starts to watch the slot; what is found goes to the report. The slot is kept while the lease is ours.
    pub fn start(
        url: UrlSource,
        replication: ReplicationConfig,
        lease: watch::Receiver<LeaseState>,
        status: StatusCell,
    ) -> Self {
        let looker = Looker {
            url,
            replication,
            lease,
            status,
            session: None,
            alarm: WalAlarm::None,
        };
        Self {
            task: tokio::spawn(looker.run()),
        }
    }
}

impl Drop for WalWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Looker {
    url: UrlSource,
    replication: ReplicationConfig,
    lease: watch::Receiver<LeaseState>,
    status: StatusCell,
    session: Option<postgres::SqlConnection>,
    alarm: WalAlarm,
}

impl Looker {
    async fn run(mut self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match timeout(LOOK_WITHIN, self.look()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    debug!(error = chain(&error), "the slot cannot be watched");
                    self.lost_sight();
                }
                Err(_) => self.lost_sight(),
            }
        }
    }

    async fn look(&mut self) -> Result<(), LookError> {
        let session = match &mut self.session {
            Some(session) => session,
            none => {
                let options = self.url.options().map_err(LookError::Url)?;
                let session = postgres::connect(&options, "watch").await?;
                let limited = session.client.batch_execute(STATEMENT_TIMEOUT).await;
                limited.map_err(PostgresError::from)?;
                none.insert(session)
            }
        };
        let name = &self.replication.slot;
        let slot = slot::status(&session.client, name).await?;
        let settings = settings(session).await?;
        let is_ours = self.lease.borrow().epoch().is_some();
        if let Some(idle_timeout) = settings.idle_timeout.filter(|_| is_ours) {
            // Parked, or reading the table first: the slot is still needed.
            let stepped_on = slot::step_on(&session.client, name, idle_timeout / 3).await;
            if let Err(error) = stepped_on {
                debug!(error = chain(&error), "the slot was not stepped on");
            }
        }
        self.judge(slot, settings.kept_bytes_max);
        Ok(())
    }

    /// What is not known any more is not shown; an alarm lasts until it is known to be over.
    fn lost_sight(&mut self) {
        self.session = None;
        self.status
            .update(|status| status.slot_retained_bytes = None);
    }

    fn judge(&mut self, slot: Option<Slot>, kept_bytes_max: Option<u64>) {
        let configured = self.replication.wal_budget_bytes;
        let bytes = kept_bytes_max.map_or(configured, |kept| kept.min(configured));
        let retained = slot.as_ref().and_then(|slot| slot.retained_bytes);
        let retained = retained.and_then(|bytes| u64::try_from(bytes.max(0)).ok());
        let wal_status = slot.and_then(|slot| slot.wal_status);
        let is_in_danger = matches!(wal_status.as_deref(), Some("unreserved" | "lost"));
        let alarm = match is_in_danger {
            true => WalAlarm::Critical,
            false => alarm_of(self.alarm, retained.unwrap_or(0), bytes),
        };
        let before = std::mem::replace(&mut self.alarm, alarm);
        if alarm != before {
            self.announce(retained.unwrap_or(0), bytes, wal_status.as_deref());
        }
        self.status.update(|status| {
            status.slot_retained_bytes = retained;
            status.wal_budget = Some(WalBudget { bytes, alarm });
        });
    }

    fn announce(&self, retained_bytes: u64, budget_bytes: u64, wal_status: Option<&str>) {
        let slot = &self.replication.slot;
        match self.alarm {
            WalAlarm::None => info!(
                slot,
                retained_bytes, budget_bytes, "the slot keeps less WAL again"
            ),
            WalAlarm::Warning => warn!(
                slot,
                retained_bytes,
                budget_bytes,
                "the slot keeps more than {WARNING_AT} % of the WAL budget: see why rows do not go out before the disk is full"
            ),
            WalAlarm::Critical => error!(
                slot,
                retained_bytes,
                budget_bytes,
                wal_status,
                "the slot keeps more than {CRITICAL_AT} % of the WAL budget, or more than the server allows: \
                 let rows go out, or give the slot up with `outboxd slot drop --yes`"
            ),
        }
    }
}

async fn settings(session: &postgres::SqlConnection) -> Result<Settings, PostgresError> {
    let row = match session.client.query_one(SETTINGS, &[]).await {
        Ok(row) => row,
        Err(error) => return Err(session.explain(error).await),
    };
    let kept: Option<i64> = row.get("kept");
    let idle: Option<f64> = row.get("idle");
    Ok(Settings {
        kept_bytes_max: kept.and_then(|bytes| u64::try_from(bytes).ok()),
        idle_timeout: idle.filter(|idle| *idle > 0.0).map(Duration::from_secs_f64),
    })
}

/// The alarm that follows on `before`: raised at a share, ended a margin below it.
fn alarm_of(before: WalAlarm, retained: u64, budget: u64) -> WalAlarm {
    let percent = u64::try_from(u128::from(retained) * 100 / u128::from(budget.max(1)));
    let percent = percent.unwrap_or(u64::MAX);
    let is_over =
        |at: u64, alarm: WalAlarm| percent >= if before >= alarm { at - MARGIN } else { at };
    if is_over(CRITICAL_AT, WalAlarm::Critical) {
        WalAlarm::Critical
    } else if is_over(WARNING_AT, WalAlarm::Warning) {
        WalAlarm::Warning
    } else {
        WalAlarm::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_begin_at_half_and_four_fifths_of_the_budget_and_do_not_flap() {
        let mut alarm = WalAlarm::None;
        for (retained, expected) in [
            (0, WalAlarm::None),
            (499, WalAlarm::None),
            (500, WalAlarm::Warning),
            (460, WalAlarm::Warning),
            (449, WalAlarm::None),
            (800, WalAlarm::Critical),
            (760, WalAlarm::Critical),
            (749, WalAlarm::Warning),
            (5_000, WalAlarm::Critical),
            (10, WalAlarm::None),
        ] {
            alarm = alarm_of(alarm, retained, 1_000);
            assert_eq!(alarm, expected, "{retained}");
        }
        assert_eq!(alarm_of(alarm, u64::MAX, 1), WalAlarm::Critical);
    }
}
