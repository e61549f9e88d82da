//! When a standby may take the lease, and until when a holder may publish.
//!
//! Pure: time comes in as a reading of one clock, rows as they were read. Never does I/O.

use std::time::Duration;

use super::{LeaseRow, Life};

/// What a row must still say when the lease is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub epoch: i64,
    pub renewals: i64,
}

/// What a standby does after it has read the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Somebody holds it; if nothing moves it is free in `free_in`.
    Wait { holder: String, free_in: Duration },
    /// It is free: take it if the row still says this; `None`: if there is still no row.
    Take { expected: Option<Version> },
}

/// A relay that waits for the lease.
#[derive(Debug, Default)]
pub(crate) struct Standby {
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    row: LeaseRow,
    connection: u64,
    since: Duration,
}

impl Standby {
    /// Decides by what was just read; `now` is taken after the answer came, `connection` names the connection.
    ///
    /// The lease is free without a row, when it was released, when its owner's process is proven dead, or when
    /// this standby has itself read the row unchanged for the row's TTL over one connection. The holder sent its
    /// last renewal before our first read of it came back, so its own TTL is over by then.
    pub(crate) fn observe(
        &mut self,
        now: Duration,
        row: Option<&LeaseRow>,
        connection: u64,
        owner: Life,
    ) -> Decision {
        let Some(row) = row else {
            self.seen = None;
            return Decision::Take { expected: None };
        };
        let expected = Some(Version {
            epoch: row.epoch,
            renewals: row.renewals,
        });
        if row.released || owner == Life::Dead {
            return Decision::Take { expected };
        }
        let since = self.unchanged_since(now, row, connection);
        let free_at = since.saturating_add(row.ttl);
        if now >= free_at {
            return Decision::Take { expected };
        }
        Decision::Wait {
            holder: row.owner.clone(),
            free_in: free_at - now,
        }
    }

    fn unchanged_since(&mut self, now: Duration, row: &LeaseRow, connection: u64) -> Duration {
        match &self.seen {
            Some(seen) if seen.row == *row && seen.connection == connection => seen.since,
            _ => {
                self.seen = Some(Seen {
                    row: row.clone(),
                    connection,
                    since: now,
                });
                now
            }
        }
    }
}

/// A relay that holds the lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    epoch: i64,
    ttl: Duration,
    renewed_at: Duration,
}

impl Holder {
    /// Begins to hold; `sent_at` is read before the statement that took the lease is sent.
    pub(crate) fn new(epoch: i64, ttl: Duration, sent_at: Duration) -> Self {
        Self {
            epoch,
            ttl,
            renewed_at: sent_at,
        }
    }

    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Notes a renewal that succeeded; `sent_at` is read before it is sent.
    pub(crate) fn renewed(&mut self, sent_at: Duration) {
        self.renewed_at = self.renewed_at.max(sent_at);
    }

    /// From here on nothing may be published without another renewal.
    pub(crate) fn valid_until(&self) -> Duration {
        self.renewed_at.saturating_add(self.ttl)
    }

    /// Whether rows may be published at `now`.
    #[cfg(test)]
    pub(crate) fn may_publish(&self, now: Duration) -> bool {
        now < self.valid_until()
    }
}

#[cfg(test)]
mod tests;
