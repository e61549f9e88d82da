//! The clock of one process, as its machines read it: how long ago the relay began, and never less than before.

use std::time::Duration;

use tokio::time::Instant;

/// A clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    began_at: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            began_at: Instant::now(),
        }
    }

    pub(super) fn now(self) -> Duration {
        self.began_at.elapsed()
    }

    /// What it shows at this instant.
    pub(super) fn reading(self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began_at)
    }

    /// When it shows this.
    pub(super) fn instant(self, reading: Duration) -> Instant {
        self.began_at + reading
    }
}
