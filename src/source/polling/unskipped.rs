//! New rows among many that a first start skipped: they are found without reading those.
//!
//! Skipped rows stay unsent for good. New ones have higher values in the column that orders them, but for those that were
//! being written as polling began, or whose writer's clock is behind. So at first every look is at all rows, until nobody
//! is left who wrote then; afterwards rows above the highest skipped one are looked at, and all again in a small share
//! of the time.

use std::collections::BTreeSet;
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::time::Instant;

use super::locks::Locks;
use super::{PollError, UnsentMark};
use crate::postgres::SqlConnection;
use crate::row::Layout;
use crate::source::holes::VirtualTransaction;
use crate::state::Skipped;

/// After a look at all rows so many times its duration passes before the next one.
const REST_FACTOR: u32 = 50;
const REST_MIN: Duration = Duration::from_millis(500);
const REST_MAX: Duration = Duration::from_secs(300);
/// A look at all rows may take longer than other statements.
const SETTINGS: &str = "SET statement_timeout = '10min'";

/// Which unsent rows a turn looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    AtAll,
    /// Those above the highest skipped one.
    AtNew,
}

pub(super) struct Unskipped {
    /// The highest value of the skipped rows, as SQL.
    pub(super) floor: String,
    locks: Locks,
    /// Of those who wrote as polling began, who is left; `None` before the first reading of the locks.
    left: Option<BTreeSet<VirtualTransaction>>,
    /// When all rows were looked at last, and how long that took.
    looked: Option<(Instant, Duration)>,
}

impl Unskipped {
    /// `None` where none of the skipped rows stands any more.
    pub(super) async fn prepare(
        session: &SqlConnection,
        layout: &Layout,
        order: &str,
        skipped: &Skipped,
        mark: UnsentMark,
    ) -> Result<Option<Self>, PollError> {
        let settings = session.client.batch_execute(SETTINGS).await;
        PollError::check(session, "set the time limit up", settings).await?;
        let (order, table) = (escape_identifier(order), layout.sql_name());
        // As the index of unsent rows has it.
        let is_unsent = match mark {
            UnsentMark::SentAt => format!("AND o.{} IS NULL", layout.names.sql("sent_at")),
            UnsentMark::Present => String::new(),
        };
        let sql = format!(
            "SELECT pg_catalog.format('%s', o.{order}), pg_catalog.format_type(pg_catalog.pg_typeof(o.{order}), NULL) \
             FROM {table} AS o WHERE o.{order} IS NOT NULL AND {} {is_unsent} ORDER BY o.{order} DESC LIMIT 1",
            skipped.condition
        );
        let row = session.client.query_opt(&sql, &[]).await;
        let row = PollError::check(session, "find the last of the skipped rows", row).await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let (highest, kind): (&str, &str) = (row.get(0), row.get(1));
        Ok(Some(Self {
            floor: format!("{}::{kind}", escape_literal(highest)),
            locks: Locks::prepare(session, &table).await?,
            left: None,
            looked: None,
        }))
    }

    /// What the next turn looks at.
    ///
    /// Who commits before the locks are read is seen by the look that follows.
    pub(super) async fn look(&mut self, session: &SqlConnection) -> Result<Look, PollError> {
        let is_over = self.left.as_ref().is_some_and(BTreeSet::is_empty);
        if !is_over && (self.left.is_none() || self.locks.is_due()) {
            let holders = self.locks.read(session).await?.holders;
            match &mut self.left {
                Some(left) => left.retain(|holder| holders.contains_key(holder)),
                None => self.left = Some(holders.into_keys().collect()),
            }
            return Ok(Look::AtAll);
        }
        let is_rested = |(at, cost): (Instant, Duration)| {
            at.elapsed() >= (cost * REST_FACTOR).clamp(REST_MIN, REST_MAX)
        };
        let is_due = !is_over || self.looked.is_none_or(is_rested);
        Ok(match is_due {
            true => Look::AtAll,
            false => Look::AtNew,
        })
    }

    /// Takes note that a look at all rows has left none behind.
    pub(super) fn looked_at_all(&mut self, elapsed: Duration) {
        self.looked = Some((Instant::now(), elapsed));
    }
}
