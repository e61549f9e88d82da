//! What runs beside a source: the watch over what it leaves out, and retention.

use tracing::error;

use super::{OpenError, SessionBuilder, connect};
use crate::mark::{FencingToken, Marks};
use crate::postgres::catalog::Table;
use crate::source::replication::sweep::Watch;
use crate::source::replication::sweep::gaps::GapWatch;
use crate::source::replication::sweep::unmarked::UnmarkedWatch;
use crate::source::{Source, SourceError};
use crate::state::OutboxState;
use crate::state::retention::{Removable, Retention, row_age};

impl SessionBuilder<'_> {
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
            Marks::Ledger(_) => GapWatch::prepare(session, &table.layout, table.first_number())
                .await
                .map(Watch::Numbers),
            Marks::Rows(_) | Marks::None => {
                let order_column = config.order_column.as_deref();
                UnmarkedWatch::prepare(session, &table.layout, config.mark, order_column, state)
                    .map(Watch::Rows)
            }
        };
        Ok(Some(watch.map_err(SourceError::from)?))
    }

    /// What removes old rows; a table whose rows' age is not known keeps them, and publishes all the same.
    pub(super) fn retention(
        &self,
        table: &Table,
        token: &FencingToken,
        generation: i32,
    ) -> Option<Retention> {
        let source = &self.config.source;
        let keep = source.retention?;
        match row_age::age(source.mark, table) {
            Ok(age) => {
                let removable = Removable {
                    table,
                    age,
                    generation,
                    keep,
                };
                let options = self.options.clone();
                Some(Retention::new(options, token.clone(), &removable))
            }
            Err(refusal) => {
                let (reason, remedy) = (refusal.text, refusal.remedy);
                error!(reason, remedy, "no row is removed");
                self.status
                    .failed(format!("no row is removed: {reason}; {remedy}"));
                None
            }
        }
    }
}
