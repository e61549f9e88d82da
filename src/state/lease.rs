//! The lease of an outbox: which relay may publish it.
//!
//! Owns the row in `outboxd.lease`: who holds it, when a standby may take it, how long a holder may go on
//! without having renewed it. Never publishes, never marks, and never touches the slot.

mod clock;
mod contest;
mod keeper;
mod owner;
mod statements;
mod suspension;

use std::time::Duration;

pub(crate) use clock::since_boot;
pub(crate) use contest::{Decision, Holder, Standby, Version};
pub use keeper::{LeaseKeeper, RELEASE_MAX};
pub(crate) use owner::{Life, Owner, shown};

use crate::config::{ConfigError, Mark, SourceConfig};
use crate::postgres::{Host, PostgresError};

/// The name of the lease: the outbox, since only one relay may mark it; a relay that marks nothing
/// shares only its slot.
pub(crate) fn lease_key(source: &SourceConfig) -> String {
    let table = match source.table_name() {
        Ok(name) => format!("{}.{}", name.schema, name.table),
        Err(_) => source.table.clone(),
    };
    lease_key_of(source, &table)
}

/// The same where the state stands under another name.
pub(crate) fn lease_key_of(source: &SourceConfig, outbox: &str) -> String {
    match source.mark {
        Mark::None => format!("{outbox}#{}", source.replication.slot),
        Mark::Ledger | Mark::SentAt | Mark::Delete => outbox.to_owned(),
    }
}

/// What `outboxd.lease` says of one outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseRow {
    /// Who took it last, as [`Owner`] writes it.
    pub owner: String,
    /// Grows each time the lease is taken; never goes back, even when the row was deleted by hand.
    pub epoch: i64,
    /// Grows with each take and each renewal.
    pub renewals: i64,
    /// The holder gave it back.
    pub released: bool,
    /// How long the holder may go on without a renewal.
    pub ttl: Duration,
}

/// What a relay knows of its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    pub role: Role,
    pub server: Server,
    /// How often PostgreSQL told us that it is stopping; who compares it misses no notice, however soon a new
    /// connection stands.
    pub shutdown_notices: u64,
    /// The chain of the last failure; `None` once a statement succeeded again.
    pub last_error: Option<String>,
}

/// The part that a relay plays for its outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The lease was not read yet.
    Starting,
    /// Another relay holds the lease.
    Standby { holder: String },
    /// We hold it and may publish until `valid_until`, a reading of [`since_boot`].
    Leader { epoch: i64, valid_until: Duration },
    /// We hold it for all we know, but have not renewed it for a TTL: nothing may be published.
    Suspended { epoch: i64 },
    /// Somebody else took it; `epoch` was ours. What is queued in the producer must not be sent any more.
    /// Followed by `Standby` or `Leader` with a higher epoch.
    Lost { by: String, epoch: i64 },
    /// We gave it back; the keeper has ended.
    Released,
}

/// How the keeper's own connection to PostgreSQL stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// There is no connection.
    Away,
    Connected,
    /// PostgreSQL said that it is stopping, or somebody ended our backend (SQLSTATE 57P01).
    ShuttingDown,
}

impl LeaseState {
    /// Whether rows may be published under this epoch at this moment.
    pub fn may_publish(&self, epoch: i64) -> bool {
        matches!(&self.role, Role::Leader { epoch: ours, valid_until }
            if *ours == epoch && since_boot() < *valid_until)
    }

    /// The epoch that we hold, may it be suspended.
    pub fn epoch(&self) -> Option<i64> {
        match self.role {
            Role::Leader { epoch, .. } | Role::Suspended { epoch } => Some(epoch),
            Role::Starting | Role::Standby { .. } | Role::Lost { .. } | Role::Released => None,
        }
    }
}

/// A failure to read, take or keep the lease.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("cannot read the connection URL")]
    Url(#[source] ConfigError),
    #[error("cannot connect for the lease")]
    Connect(#[source] PostgresError),
    #[error("`{0}` is a hot standby, and no other host of the URL is a primary")]
    HotStandby(Host),
    #[error("cannot connect for the lease within {0:?}")]
    ConnectTimeout(Duration),
    #[error("cannot read the lease of `{outbox}`")]
    Read {
        outbox: String,
        #[source]
        source: PostgresError,
    },
    #[error("cannot take the lease of `{outbox}`")]
    Take {
        outbox: String,
        #[source]
        source: PostgresError,
    },
    #[error("cannot renew the lease of `{outbox}`")]
    Renew {
        outbox: String,
        #[source]
        source: PostgresError,
    },
    #[error("cannot release the lease of `{outbox}`")]
    Release {
        outbox: String,
        #[source]
        source: PostgresError,
    },
    #[error("PostgreSQL did not answer about the lease within {0:?}")]
    Timeout(Duration),
    #[error(
        "a commit waits for a synchronous standby, for `synchronous_standby_names` is {names} and none of them answers: \
         start it, or take it out of the setting"
    )]
    CommitWaits { names: String },
    #[error("the connection of the lease ended")]
    Ended(#[source] PostgresError),
    #[error("{} took the lease, whose epoch {epoch} was ours", owner::shown(.by))]
    Lost { by: String, epoch: i64 },
}

impl LeaseError {
    /// The session takes no writes; another one may.
    fn is_read_only(&self) -> bool {
        matches!(self, Self::Take { source, .. } | Self::Renew { source, .. } | Self::Release { source, .. }
            if source.is_read_only())
    }
}
