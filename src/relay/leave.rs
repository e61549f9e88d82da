//! How a session is left: within the grace period, where we were asked to stop.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::Run;
use super::machine::{Effect, End};
use crate::source;

/// How long a session that ends waits for what is being recorded as put aside.
const KEEP_WITHIN: Duration = Duration::from_secs(2);
/// A loop that waits for an answer is left so long after the grace period; any other has left by then.
const OVERDUE_AFTER: Duration = Duration::from_millis(250);

impl Run<'_> {
    /// Ends once the grace period is over, too, whatever PostgreSQL does not answer.
    pub(super) async fn until_end_or_overdue(&mut self) -> End {
        let stop = self.stop.clone();
        let (grace, stop_by) = (self.relay.config.shutdown.grace, self.relay.stop_by);
        let overdue = async {
            stop.cancelled().await;
            let stop_by = stop_by.unwrap_or_else(|| Instant::now() + grace);
            sleep_until(stop_by + OVERDUE_AFTER).await;
            stop_by
        };
        tokio::select! {
            biased;
            end = self.until_end() => end,
            stop_by = overdue => {
                self.relay.stop_by.get_or_insert(stop_by);
                warn!(
                    rows = self.machine.memory().core.rows(),
                    "`shutdown.grace` is over and PostgreSQL does not answer: rows may be sent again"
                );
                End::Stopped
            }
        }
    }

    /// Leaves the source in order; a mark whose outcome is unknown is written again later.
    pub(super) async fn leave(mut self, end: &End) {
        if let Some(marking) = self.tasks.marking.take() {
            marking.abort();
        }
        // Were it committed later, a release in between would be undone.
        let was_recorded = match self.tasks.recording.take() {
            Some(task) => {
                let within = self.relay.within_grace(KEEP_WITHIN);
                matches!(timeout(within, task).await, Ok(Ok(Ok(_))))
            }
            None => false,
        };
        let mut effects = Vec::new();
        let memory = self.machine.leave(was_recorded, &mut effects);
        for effect in effects {
            if let Effect::Confirm(lsn) = effect {
                self.source.confirm(lsn);
            }
        }
        drop(self.tasks);
        drop(self.catalog_check);
        self.relay.producers.drop_successor();
        self.relay.saw_flushed(self.source.server_lsn());
        let within = self.relay.within_grace(source::ENDS_WITHIN);
        self.source.leave(within).await;
        self.relay.memory = Some(memory);
        match end {
            End::Deposed => self.relay.depose().await,
            _ => self.relay.memory_mut().core.source_ended(),
        }
    }
}
