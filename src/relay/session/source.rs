//! Who hands out the rows of a session: the slot, or the table.

use std::sync::Arc;

use tokio_postgres::Client;
use tracing::info;

use super::identity_check::KnownOutbox;
use super::{OpenError, SessionBuilder, connect};
use crate::config::{CatchUpFrom, Mark, Mode, Start};
use crate::mark::Marks;
use crate::postgres::Class;
use crate::postgres::catalog::Table;
use crate::postgres::compatibility::{self, Incompatibility, Order};
use crate::postgres::obstacles;
use crate::postgres::slot;
use crate::relay::Phase;
use crate::source::polling::{CaughtUp, Known, Ordering, Polling, UnsentMark};
use crate::source::replication::pgoutput::Described;
use crate::source::{LAG_BYTES_MAX, SlotAdvancer, Source, SourceError};
use crate::state::StateTable;

impl SessionBuilder<'_> {
    pub(super) async fn source(
        &mut self,
        table: &Table,
        marks: &Marks,
        states: &StateTable<'_>,
        known: KnownOutbox,
    ) -> Result<(Source, Phase), OpenError> {
        let replication = &self.config.source.replication;
        let is_streamed = self.config.source.mode == Mode::Replication;
        if is_streamed && known.state.caught_up && !self.is_far_behind(states.client).await? {
            self.pass(states).await?;
            let outbox = Described::new(&self.config.route, table);
            let bytes_max = crate::kafka::record_bytes_max(&self.config.kafka);
            let stream = Source::stream(&self.options, replication, outbox, bytes_max).await;
            return match stream {
                Ok(stream) => Ok((stream, Phase::Steady)),
                Err(failure) => Err(self.not_streamed(states.client, failure).await),
            };
        }
        let source = self.table_source(table, marks, known).await?;
        // Until the table is read, a stream that took over would miss what stands there only.
        states.set_caught_up(false).await?;
        if !is_streamed {
            return Ok((source, Phase::Steady));
        }
        info!("reading rows that existed before the slot");
        Ok((source, Phase::CatchUp))
    }

    /// A server without room for the stream is told in the words of `check`.
    async fn not_streamed(&self, client: &Client, failure: SourceError) -> OpenError {
        if Class::behind(&failure) != Some(Class::TooManyConnections) {
            return failure.into();
        }
        let slot = &self.config.source.replication.slot;
        match obstacles::replication::sender(client, slot).await {
            Ok(Some(Incompatibility { text, remedy })) => OpenError::NoSender {
                reason: text,
                remedy,
            },
            Ok(None) | Err(_) => failure.into(),
        }
    }

    /// Whether the table is there sooner than the stream; a stream that falls behind while it runs goes on.
    async fn is_far_behind(&self, client: &Client) -> Result<bool, OpenError> {
        if self.moves_slot().is_none() {
            return Ok(false);
        }
        let slot = &self.config.source.replication.slot;
        let lag_bytes = slot::position(client, slot).await?.lag_bytes();
        let is_far = lag_bytes > LAG_BYTES_MAX;
        if is_far {
            info!(slot, lag_bytes, "the slot is far behind");
        }
        Ok(is_far)
    }

    /// What orders the rows that stand in the table.
    pub(super) fn order(&self, table: &Table) -> Order<'_> {
        let source = &self.config.source;
        compatibility::order(source.mark, source.order_column.as_deref(), table)
    }

    /// The slot that is moved while the table is read in its place.
    fn moves_slot(&self) -> Option<&str> {
        let source = &self.config.source;
        let is_asked_for = source.replication.catch_up == CatchUpFrom::Table;
        (is_asked_for && source.mode == Mode::Replication).then_some(&source.replication.slot)
    }

    /// What is needed to read the table, on a connection of its own.
    pub(super) async fn polling(&self, table: &Table) -> Result<Polling, OpenError> {
        let source = &self.config.source;
        Ok(Polling {
            session: connect(&self.options, "polling").await?,
            layout: Arc::new(table.layout.clone()),
            outbox: table.layout.outbox(),
            table: table.layout.sql_name(),
            oid: table.oid,
            shape: table.shape.clone(),
            batch_rows: source.polling.batch_rows,
            value_bytes_max: crate::kafka::record_bytes_max(&self.config.kafka),
            interval: source.polling.interval,
            caught_up: match (self.carry_over.undecodable_commit_lsn, self.moves_slot()) {
                // A row that stands in no order must not become visible only later.
                _ if self.order(table) == Order::Untold => CaughtUp::WithTheWriters,
                (Some(_), _) => CaughtUp::WithTheWriters,
                (None, Some(_)) => CaughtUp::WithPositions,
                (None, None) => CaughtUp::WithTheTable,
            },
        })
    }

    /// Reads from the table itself: by number, or what is not marked.
    async fn table_source(
        &self,
        table: &Table,
        marks: &Marks,
        known: KnownOutbox,
    ) -> Result<Source, OpenError> {
        let KnownOutbox { state, top_id, .. } = known;
        let source = &self.config.source;
        let polling = self.polling(table).await?;
        let first = table.first_number();
        let order = self.order(table);
        let unsent = match source.mark {
            Mark::SentAt => Some(UnsentMark::SentAt),
            Mark::Delete => Some(UnsentMark::Present),
            Mark::None if order == Order::Untold => Some(UnsentMark::Present),
            Mark::Ledger | Mark::None => None,
        };
        if let Some(unsent) = unsent {
            let ordering = ordering(order, source.mark, table, state.start);
            let skipped = state.skipped_in(&table.layout);
            return Ok(Source::unsent(polling, unsent, ordering, skipped));
        }
        let (top, settled) = match marks {
            Marks::Ledger(ledger) => (Some(ledger.highest()), ledger.settled()),
            Marks::Rows(_) | Marks::None => (state.skipped().last(), state.skipped().clone()),
        };
        let top = top.filter(|top| *top >= first);
        // The ledger's tail is the top, unless rows above it were skipped.
        let top_id = top_id.filter(
            |_| matches!(marks, Marks::Ledger(ledger) if ledger.tail().map(|tail| tail.seq) == top),
        );
        let known = Known {
            first,
            top,
            top_id,
            settled,
        };
        Ok(match self.moves_slot() {
            None => Source::by_seq(polling, known),
            Some(slot) => {
                let advancer = SlotAdvancer {
                    session: connect(&self.options, "slot").await?,
                    slot: slot.to_owned(),
                };
                Source::ahead_of_slot(polling, known, advancer)
            }
        })
    }
}

fn ordering(order: Order<'_>, mark: Mark, table: &Table, start: Option<Start>) -> Ordering {
    let seq = table.layout.seq.map(|seq| &table.layout.columns[seq].name);
    match (order, seq) {
        (Order::Column(column), _) => Ordering::By(column.to_owned()),
        (Order::Numbers, Some(seq)) => Ordering::By(seq.clone()),
        (Order::Numbers | Order::Untold, _) => {
            let Incompatibility { text, remedy } = compatibility::untold(mark, table, start);
            Ordering::Untold(format!("{text}; {remedy}").into())
        }
    }
}
