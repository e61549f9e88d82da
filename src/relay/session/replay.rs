//! Rows to replay come before all others, with what stands ahead of them in the table.

use super::{OpenError, SessionBuilder};
use crate::config::Mark;
use crate::core::Recorded;
use crate::mark::Marks;
use crate::postgres;
use crate::postgres::catalog::{Table, seq_trusted};
use crate::relay::Phase;
use crate::row::OutboxRow;
use crate::row::ranges::RangeSet;
use crate::source::polling::{UnsentMark, read_ahead};
use crate::source::{Source, SourceError};
use crate::state::OutboxState;
use crate::state::hold::RowsAhead;
use crate::state::hold::{self, Due, ReplayOrder};
use crate::state::lease::lease_key;

/// The numbers that are sent or put aside; nothing where all that waits is kept whole.
pub(super) fn settled(marks: &Marks, recorded: &Recorded, state: &OutboxState) -> Option<RangeSet> {
    match marks {
        Marks::Ledger(ledger) => Some(ledger.settled()),
        Marks::Rows(_) => Some(recorded.numbers.union(state.skipped())),
        Marks::None => None,
    }
}

impl SessionBuilder<'_> {
    /// The source of a session that replays; nothing where nothing waits for it.
    pub(super) async fn replay(
        &self,
        sql: &postgres::SqlConnection,
        table: &Table,
        settled: Option<RangeSet>,
        generation: i32,
    ) -> Result<Option<(Source, Phase)>, OpenError> {
        // Numbers that are not trusted tell no order.
        let settled = settled.filter(|_| seq_trusted(table).is_ok());
        let due = Due {
            outbox: &lease_key(&self.config.source),
            generation,
            order: match settled {
                Some(_) => ReplayOrder::ByNumber,
                None => ReplayOrder::AsKept,
            },
        };
        let copies = hold::to_replay(&sql.client, &due, &table.layout).await?;
        if copies.is_empty() {
            return Ok(None);
        }
        let rows: Vec<_> = copies.iter().map(|(_, row)| row).collect();
        let ahead = match settled {
            Some(settled) => self.ahead(table, &settled, &rows).await?,
            None => RowsAhead::default(),
        };
        let (copies, rows) = hold::merge(copies, ahead);
        Ok(Some((Source::given(rows), Phase::Replay(copies))))
    }

    /// What stands unsent in the table ahead of the copies, in their aggregates.
    async fn ahead(
        &self,
        table: &Table,
        settled: &RangeSet,
        copies: &[&OutboxRow],
    ) -> Result<RowsAhead, OpenError> {
        let newest = copies.iter().filter_map(|copy| copy.seq).max();
        let Some(newest) = newest else {
            return Ok(RowsAhead::default());
        };
        let numbers: RangeSet = settled.gaps(table.first_number()..=newest).collect();
        if numbers.is_empty() {
            return Ok(RowsAhead::default());
        }
        let unsent = match self.config.source.mark {
            Mark::SentAt => Some(UnsentMark::SentAt),
            Mark::Delete => Some(UnsentMark::Present),
            Mark::Ledger | Mark::None => None,
        };
        let polling = self.polling(table).await?;
        let ahead = read_ahead(&polling, unsent, &numbers, copies).await;
        Ok(ahead.map_err(SourceError::from)?)
    }
}
