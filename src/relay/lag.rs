//! How far behind the table is, as a running session asks: what it knows itself is left out of the question.

use std::sync::Arc;

use tokio::time::{Duration, timeout};
use tracing::debug;

use super::Run;
use crate::mark::Marks;
use crate::state::retention;
use crate::state::unsent::{Known, Question};

/// How often the table is asked for the rows that were not sent.
const LAG_EVERY_TICKS: u32 = 5;
/// How often it is asked how much it holds.
const KEPT_EVERY_TICKS: u32 = 60;
/// How long that may take; a table that is too busy for it is asked again later.
const LAG_WITHIN: Duration = Duration::from_secs(5);

impl Run<'_> {
    /// Whether the table is asked in this tick.
    pub(super) fn is_turn_of_lag(&self) -> bool {
        self.ticks.is_multiple_of(LAG_EVERY_TICKS)
    }

    /// Asks the table, beside everything else, what was not sent yet.
    pub(super) fn ask_for_lag(&mut self) {
        let is_asking = self.tasks.lag_question.as_ref();
        if !self.is_turn_of_lag() || is_asking.is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (sql, status) = (Arc::clone(&self.sql), self.relay.status.clone());
        let (layout, outbox) = (
            &self.machine.terms().layout,
            &self.machine.terms().token.outbox,
        );
        let mark = self.relay.config.source.mark;
        let Some(question) = Question::new(mark, layout, outbox, Some(&self.known())) else {
            return;
        };
        let is_turn_of_kept = self.ticks.is_multiple_of(KEPT_EVERY_TICKS);
        let kept_in = is_turn_of_kept.then(|| layout.sql_name());
        self.tasks.lag_question = Some(tokio::spawn(async move {
            let asked = async {
                status.measured(question.ask(&sql.client).await?);
                if let Some(table) = kept_in {
                    let kept = retention::table_size(&sql.client, &table).await?;
                    status.update(|status| status.table_size = kept.or(status.table_size));
                }
                Ok::<_, tokio_postgres::Error>(())
            };
            if !matches!(timeout(LAG_WITHIN, asked).await, Ok(Ok(()))) {
                debug!("the table did not say how far behind it is");
            }
        }));
    }

    /// What the database would count although it is sent.
    fn known(&self) -> Known {
        let rows: Vec<_> = self.machine.memory().core.acknowledged().collect();
        let (acknowledged_rows, acknowledged) =
            (rows.len() as u64, rows.into_iter().flatten().collect());
        Known {
            accounted: match self.machine.marks() {
                Marks::Ledger(ledger) => Some(ledger.accounted().union(&acknowledged)),
                Marks::Rows(_) | Marks::None => None,
            },
            acknowledged,
            acknowledged_rows,
        }
    }
}
