//! Counts the rows that were not sent while no session does: a leader that can't publish still says what waits.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;

use super::{StatusCell, database};
use crate::config::SourceConfig;
use crate::postgres::{self, SqlConnection};
use crate::state::lease::LeaseState;
use crate::text::chain;

const EVERY: Duration = Duration::from_secs(5);

/// Counts beside the supervisor until it is dropped; holds a connection only while no session counts.
pub(crate) struct Counting(JoinHandle<()>);

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Counting {
    pub(crate) fn start(
        source: SourceConfig,
        lease: watch::Receiver<LeaseState>,
        status: StatusCell,
    ) -> Self {
        Self(tokio::spawn(async move {
            let mut session = None;
            loop {
                tokio::time::sleep(EVERY).await;
                let is_leader = lease.borrow().epoch().is_some();
                if !is_leader || !status.is_uncounted() {
                    session = None;
                    continue;
                }
                // A server that does not answer is asked again, over another connection.
                let counted = timeout(EVERY, count(session.take(), &source, &status));
                session = counted.await.unwrap_or_default();
            }
        }))
    }
}

/// Counts once; gives the connection back while it lives.
async fn count(
    session: Option<SqlConnection>,
    source: &SourceConfig,
    status: &StatusCell,
) -> Option<SqlConnection> {
    let session = match session.filter(|session| !session.client.is_closed()) {
        Some(session) => session,
        None => connect(source).await?,
    };
    match database::unsent(&session.client, source).await {
        Ok(Some(unsent)) => status.measured(unsent),
        Ok(None) => {}
        Err(error) => {
            debug!(error = chain(&error), "could not count what was not sent");
            return None;
        }
    }
    Some(session)
}

async fn connect(source: &SourceConfig) -> Option<SqlConnection> {
    let options = source.url.options().ok()?;
    let connected = postgres::connect(&options, "lag").await;
    let session = connected
        .inspect_err(|error| debug!(error = chain(error), "could not count what was not sent"));
    let session = session.ok()?;
    let limited = session.client.batch_execute(database::STATEMENT_TIMEOUT);
    limited.await.ok()?;
    Some(session)
}
