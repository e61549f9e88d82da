//! The first start: everything, or what comes from now on, or a person is asked.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use super::{OpenError, SessionBuilder};
use crate::config::{Mode, Start};
use crate::postgres;
use crate::postgres::catalog::{Table, seq_trusted};
use crate::postgres::compatibility::{self, Incompatibility, Order};
use crate::source::SourceError;
use crate::source::polling::{Locks, PollError};
use crate::state::{SkippedBy, StateTable};

/// More rows than this are "at least so many" in what is told.
const ROWS_TOLD_MAX: i64 = 1_000_000;

/// How long transactions are waited for that may have been committed before the slot and are not visible yet.
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);
const AGAIN_AFTER: Duration = Duration::from_millis(50);

impl SessionBuilder<'_> {
    /// Decides once what becomes of the rows that stand in the table.
    ///
    /// Errors: `Halt` where a person must decide, or where rows were to be published whose order nothing tells.
    pub(super) async fn decide_start(
        &self,
        sql: &postgres::SqlConnection,
        states: &StateTable<'_>,
        table: &Table,
    ) -> Result<(), OpenError> {
        // Of such a table nothing is read: the stream alone knows the order.
        let is_streamed_alone =
            self.config.source.mode == Mode::Replication && self.order(table) == Order::Untold;
        if is_streamed_alone {
            wait_for_writers(sql, table).await?;
        }
        let rows = states.rows_standing(&table.layout, ROWS_TOLD_MAX).await?;
        match self.config.source.start {
            Some(Start::Now) => {
                let by = match seq_trusted(table) {
                    Ok(()) => SkippedBy::Numbers,
                    Err(_) => SkippedBy::Ids,
                };
                states.start_now(&table.layout, by).await?;
                info!(rows, "starting with what is committed from now on");
            }
            Some(Start::All) if rows > 0 && is_streamed_alone => return Err(self.untold(table)),
            Some(Start::All) => {
                states.start_with_all().await?;
                info!(rows, "starting with everything that stands in the table");
            }
            None if rows == 0 => states.start_with_all().await?,
            None => return Err(self.undecided(states.outbox, rows, table)),
        }
        if is_streamed_alone {
            states.set_caught_up(true).await?;
        }
        Ok(())
    }

    fn undecided(&self, outbox: &str, rows: i64, table: &Table) -> OpenError {
        let count = match rows {
            ROWS_TOLD_MAX => "at least ",
            _ => "",
        };
        let remedy = compatibility::start_remedy(self.config.source.mode, self.order(table));
        OpenError::Halt {
            reason: format!("`{outbox}` holds {count}{rows} rows and nothing is known of them"),
            remedy: remedy.to_owned(),
        }
    }

    fn untold(&self, table: &Table) -> OpenError {
        let Incompatibility { text, remedy } =
            compatibility::untold(self.config.source.mark, table, None);
        OpenError::Halt {
            reason: text,
            remedy,
        }
    }
}

/// Waits until nobody is left who holds the table's lock now: what they committed before the slot is visible then.
///
/// One that goes on writing for longer commits behind the slot, which brings its rows.
async fn wait_for_writers(sql: &postgres::SqlConnection, table: &Table) -> Result<(), OpenError> {
    let failed = |failure: PollError| OpenError::Source(SourceError::Polling(failure));
    let mut locks = Locks::prepare(sql, &table.layout.sql_name())
        .await
        .map_err(failed)?;
    let mut left = locks.read(sql).await.map_err(failed)?.holders;
    let until = Instant::now() + VISIBLE_WITHIN;
    while !left.is_empty() && Instant::now() < until {
        sleep(AGAIN_AFTER).await;
        let holders = locks.read(sql).await.map_err(failed)?.holders;
        left.retain(|holder, _| holders.contains_key(holder));
    }
    Ok(())
}
