//! The place where the relay writes its report and everybody else reads it.
//!
//! Never waits: a reader holds the lock for one copy, a writer for one change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{
    InFlight, Lag, LastError, Lease, Position, Role, State, Status, Timestamp, show_unsent,
};
use crate::config::SourceConfig;
use crate::state::lease;
use crate::state::unsent::Unsent;

/// What a leader does that waits for nothing else.
pub(crate) const OPENING: &str = "starting a session";

/// Why a relay that has not read the lease yet publishes nothing.
const STARTING: &str = "waiting for PostgreSQL";

/// Why a holder whose lease ran out publishes nothing.
pub(crate) const LEASE_RAN_OUT: &str = "the lease can't be renewed: waiting for PostgreSQL";

/// A session counts every five seconds; what is older than this is no answer any more.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(30);

/// After so long somebody counts for a session that does not.
const COUNTED_WITHIN: Duration = Duration::from_secs(10);

/// The report of this process; clones share it.
#[derive(Clone, Debug)]
pub struct StatusCell(Arc<Mutex<Inside>>);

#[derive(Debug)]
struct Inside {
    status: Status,
    /// What the database said last of the rows that were not sent.
    sample: Option<Sample>,
    /// When the main loop turned last, a reading of [`lease::since_boot`].
    beat_at: Duration,
}

/// What was counted at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    unsent: Unsent,
    /// A reading of [`lease::since_boot`].
    at: Duration,
    on: Timestamp,
}

impl StatusCell {
    pub(crate) fn new(config: &SourceConfig) -> Self {
        Self(Arc::new(Mutex::new(Inside {
            status: Status::starting(config),
            sample: None,
            beat_at: lease::since_boot(),
        })))
    }

    /// The report as it stands now; what was counted too long ago is not known any more.
    pub(crate) fn snapshot(&self) -> Status {
        let inside = self.inside();
        let mut status = inside.status.clone();
        let Some(sample) = inside.sample else {
            return status;
        };
        if sample.age() > SAMPLE_AGE_MAX {
            status.lag = Lag {
                not_known_since: Some(sample.on),
                ..Lag::default()
            };
            return status;
        }
        show_unsent(&sample.unsent, &mut status);
        status
    }

    /// Takes what the database says of the rows that were not sent, for a leader.
    pub(crate) fn measured(&self, unsent: Unsent) {
        let (at, on) = (lease::since_boot(), Timestamp::now());
        let inside = &mut *self.inside();
        // An answer may come when another relay leads already.
        if matches!(inside.status.role, Role::Leader | Role::Halted) {
            inside.sample = Some(Sample { unsent, at, on });
        }
    }

    /// Whether nobody has counted for so long that somebody else should.
    pub(crate) fn is_uncounted(&self) -> bool {
        let sample = self.inside().sample;
        sample.is_none_or(|sample| sample.age() > COUNTED_WITHIN)
    }

    /// Changes the report; `since` follows by itself when role, state or reason become others.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        let status = &mut self.inside().status;
        let before = (status.role, status.state, status.reason.clone());
        change(status);
        if before != (status.role, status.state, status.reason.clone()) {
            status.since = Timestamp::now();
        }
    }

    /// Says what the relay does and why; an empty reason where there is nothing to say.
    pub(crate) fn state(&self, state: State, reason: impl Into<String>) {
        self.update(|status| {
            status.state = state;
            status.reason = reason.into();
        });
    }

    /// Publishes nothing until a person acts.
    pub(crate) fn halt(&self, reason: impl Into<String>) {
        self.update(|status| {
            (status.role, status.state) = (Role::Halted, State::Halted);
            status.reason = reason.into();
        });
    }

    /// Takes over what the lease says: role, holder, epoch, and whether PostgreSQL answers.
    ///
    /// A halted relay stays halted while it holds the lease. A leader's state is not touched, that is the
    /// session's; whoever can't publish waits.
    pub(crate) fn lease(&self, lease: &lease::LeaseState) {
        if lease.epoch().is_none() {
            self.forget_leadership();
        }
        self.update(|status| {
            status.postgres.is_up = Some(lease.server == lease::Server::Connected);
            status.postgres.error.clone_from(&lease.last_error);
            let (role, waits_for) = match &lease.role {
                lease::Role::Starting => (Role::Starting, Some(STARTING)),
                lease::Role::Standby { holder } => {
                    let holder = holder.clone();
                    let epoch = None;
                    status.lease = Some(Lease { holder, epoch });
                    (Role::Standby, Some("another relay holds the lease"))
                }
                lease::Role::Leader { epoch, .. } => {
                    status.lease = Some(Lease::ours(*epoch));
                    (Role::Leader, None)
                }
                lease::Role::Suspended { epoch } => {
                    status.lease = Some(Lease::ours(*epoch));
                    (Role::Leader, Some(LEASE_RAN_OUT))
                }
                lease::Role::Lost { by, .. } => {
                    let holder = by.clone();
                    let epoch = None;
                    status.lease = Some(Lease { holder, epoch });
                    (Role::Standby, Some("another relay took the lease"))
                }
                lease::Role::Released => (Role::Standby, Some("the lease was released")),
            };
            if status.role == Role::Halted && role == Role::Leader {
                return;
            }
            if matches!(status.state, State::Draining) {
                status.role = role;
                return;
            }
            status.role = role;
            if let Some(reason) = waits_for {
                status.state = State::Waiting;
                status.reason = match role {
                    Role::Standby => reason.to_owned(),
                    _ => because(reason, lease.last_error.as_deref()),
                };
            } else if status.state == State::Starting || is_about_the_lease(&status.reason) {
                status.state = State::Waiting;
                OPENING.clone_into(&mut status.reason);
            }
        });
    }

    /// Notes an error for `last_error`; the text is a chain without row content.
    pub(crate) fn failed(&self, text: impl Into<String>) {
        let error = LastError {
            text: text.into(),
            at: Timestamp::now(),
        };
        self.update(|status| status.last_error = Some(error));
    }

    /// Notes that a broker answered.
    pub(crate) fn broker_answers(&self) {
        let kafka = &mut self.inside().status.kafka;
        kafka.is_up = Some(true);
        kafka.error = None;
    }

    /// Drops what only a leader knows: another relay's rows are none of a standby's.
    fn forget_leadership(&self) {
        let inside = &mut *self.inside();
        inside.sample = None;
        let status = &mut inside.status;
        (status.lag, status.position) = (Lag::default(), Position::default());
        (status.in_flight, status.held) = (InFlight::default(), Vec::new());
        (status.held_topics, status.held_topics_left_out) = (Vec::new(), 0);
        (status.held_topic_rows, status.holes_open) = (None, None);
        (status.blocked_aggregates, status.blocked_rows) = (None, None);
        (status.dead_letters, status.table_size) = (None, None);
        status.oldest_unsent_age_seconds = None;
        status.drift.clear();
    }

    /// Says that the main loop turns; to be called at least every few seconds.
    pub(crate) fn beat(&self) {
        self.inside().beat_at = lease::since_boot();
    }

    /// For how long the main loop has not turned.
    pub(crate) fn silent_for(&self) -> Duration {
        lease::since_boot().saturating_sub(self.inside().beat_at)
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // A writer that panicked leaves a report that is whole: each field is written at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    fn ours(epoch: i64) -> Self {
        Self {
            holder: "this relay".to_owned(),
            epoch: Some(epoch),
        }
    }
}

/// What is waited for, with what PostgreSQL says against it.
pub(crate) fn because(reason: &str, error: Option<&str>) -> String {
    match error {
        Some(error) => format!("{reason}: {error}"),
        None => reason.to_owned(),
    }
}

fn is_about_the_lease(reason: &str) -> bool {
    reason.contains("the lease") || reason.starts_with(STARTING)
}

impl Sample {
    fn age(&self) -> Duration {
        lease::since_boot().saturating_sub(self.at)
    }
}
