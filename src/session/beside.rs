//! What watches beside a stream.

use super::{OpenError, Opening, connect, first_number};
use crate::inspect::Table;
use crate::mark::Marks;
use crate::source::replication::hole_watch::HoleWatch;
use crate::source::replication::missed::Watch;
use crate::source::replication::row_watch::RowWatch;
use crate::source::{Source, SourceError};
use crate::state::OutboxState;

impl Opening<'_> {
    /// What a stream leaves out, only the table can tell; without a mark it can't either.
    pub(super) async fn watch(
        &self,
        table: &Table,
        marks: &Marks,
        source: &Source,
        state: &OutboxState,
    ) -> Result<Option<Watch>, OpenError> {
        if !source.is_stream() || matches!(marks, Marks::None) {
            return Ok(None);
        }
        let session = connect(&self.options, "sweep").await?;
        let config = &self.config.source;
        let watch = match marks {
            Marks::Ledger(_) => HoleWatch::prepare(session, &table.layout, first_number(table))
                .await
                .map(Watch::Numbers),
            Marks::Rows(_) | Marks::None => {
                let order_column = config.order_column.as_deref();
                RowWatch::prepare(session, &table.layout, config.mark, order_column, state)
                    .map(Watch::Rows)
            }
        };
        Ok(Some(watch.map_err(SourceError::from)?))
    }
}
