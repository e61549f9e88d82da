//! Retention: rows that were sent long ago are removed, a few thousand numbers at a time, over a connection of its own.
//!
//! Never removes a row that is not recorded as sent, nor the highest one, and never holds a lock for long.

mod partitions;
pub(crate) mod pass;
mod plan;
pub mod row_age;
mod statement;
mod table_size;

use std::time::Duration;

use tokio_postgres::Client;

use crate::mark::{FencingToken, MarkError};
use crate::postgres::catalog::{Table, TableKind};
use crate::postgres::{self, ConnectOptions, PostgresError};
use crate::row::ranges::RangeSet;
pub(crate) use partitions::Tended;
use partitions::{Partitions, Tending};
pub(crate) use plan::{AHEAD, Bounds};
pub(crate) use row_age::Age;
use statement::Statements;
pub(crate) use table_size::{TableSize, table_size};

/// A statement waits for no row that somebody has locked, for it holds the lease's row meanwhile.
const SETTINGS: &str = "\
    SET lock_timeout = '100ms'; SET statement_timeout = '2s'; SET max_parallel_workers_per_gather = 0";

/// What one outbox's retention works with.
pub struct Retention {
    options: ConnectOptions,
    session: Option<postgres::SqlConnection>,
    statements: Statements,
    partitions: Option<Partitions>,
    token: FencingToken,
    generation: i32,
    keep: Duration,
}

/// What is to be removed from, and how old a row must be.
pub struct Removable<'a> {
    pub table: &'a Table,
    pub age: Age,
    pub generation: i32,
    pub keep: Duration,
}

/// What became of one batch of numbers.
#[derive(Debug, Default)]
pub struct Removed {
    /// The rows that were removed.
    pub gone: RangeSet,
    /// Those that stand.
    pub left: RangeSet,
    /// Some of these are only not old enough.
    pub has_young: bool,
    /// Rows of which the ledger says nothing although every number was settled: nothing was removed.
    pub missed: RangeSet,
    /// The numbers are others than when the session began: nothing was removed.
    pub is_other_table: bool,
}

impl Retention {
    /// Prepares; connects when there is something to do.
    pub fn new(options: ConnectOptions, token: FencingToken, removable: &Removable<'_>) -> Self {
        Self {
            options,
            session: None,
            statements: Statements::new(removable.table, removable.age),
            partitions: (removable.age == Age::Created
                && removable.table.kind == TableKind::Partitioned)
                .then(|| Partitions::new(removable.table)),
            token,
            generation: removable.generation,
            keep: removable.keep,
        }
    }

    /// Whether partitions may go as a whole.
    pub(crate) fn has_partitions(&self) -> bool {
        self.partitions.is_some()
    }

    /// Makes partitions ahead and drops an old one whose numbers are all `removable`.
    ///
    /// A partition is detached, compared with the ledger, then dropped; with a row too many it is attached again, and its
    /// segments are opened, so that the table is searched for the row (docs/design.md, "Retention").
    ///
    /// Errors: `NotLeader` when the lease moved.
    /// Cancel-safe: yes, a partition that is left detached is attached by the next call.
    pub(crate) async fn maintain_partitions(
        &mut self,
        removable: &RangeSet,
    ) -> Result<Option<Tended>, MarkError> {
        let Some(mut partitions) = self.partitions.take() else {
            return Ok(None);
        };
        let token = self.token.clone();
        let tending = Tending {
            token: &token,
            generation: self.generation,
            keep_seconds: self.keep.as_secs_f64(),
            removable,
        };
        let tended = match self.client().await {
            Ok(client) => partitions.maintain_partitions(client, &tending).await,
            Err(failure) => Err(failure),
        };
        self.partitions = Some(partitions);
        let tended = tended?;
        if let Some(missed) = tended.as_ref().map(|tended| &tended.missed) {
            self.reopen(missed).await?;
        }
        Ok(tended)
    }

    /// Opens the segments of missed rows again, so that these are looked for in the table.
    async fn reopen(&mut self, missed: &RangeSet) -> Result<(), MarkError> {
        if missed.is_empty() {
            return Ok(());
        }
        let (sql, missed) = (self.statements.reopen.clone(), missed.to_multirange_text());
        let (token, generation) = (self.token.clone(), self.generation);
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&token.outbox, &token.epoch, &generation, &missed];
        let reopened = self.client().await?.execute(&sql, &parameters).await;
        reopened
            .map(drop)
            .map_err(MarkError::sql("open a segment again"))
    }

    /// Gives the lowest number from `from` on and the highest number of all that stand in the table.
    ///
    /// Cancel-safe: yes.
    pub(crate) async fn bounds(&mut self, from: i64) -> Result<Option<(i64, i64)>, MarkError> {
        let sql = self.statements.bounds.clone();
        let client = self.client().await?;
        let row = client.query_one(&sql, &[&from]).await;
        let row = row.map_err(MarkError::sql("read how far the table goes"))?;
        let (first, last): (Option<i64>, Option<i64>) = (row.get(0), row.get(1));
        Ok(first.zip(last))
    }

    /// Removes what is old enough of these numbers, in one short transaction.
    ///
    /// What DELETE … RETURNING gives is compared with the ledger before it is committed (docs/design.md, "Retention"). A row too many was
    /// missed: all of the batch stays, and its segment is opened again, so that the table is searched for it.
    ///
    /// Errors: `NotLeader` when the lease moved.
    /// Cancel-safe: yes, the transaction is rolled back.
    pub async fn remove(&mut self, numbers: &RangeSet) -> Result<Removed, MarkError> {
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            return Ok(Removed::default());
        };
        let sql = self.statements.remove.clone();
        let (token, generation) = (self.token.clone(), self.generation);
        let keep_seconds = self.keep.as_secs_f64();
        let failed = MarkError::sql("remove rows that were sent");
        let transaction = self.client().await?.transaction().await.map_err(failed)?;
        let row = transaction
            .query_one(
                &sql,
                &[
                    &token.outbox,
                    &token.epoch,
                    &generation,
                    &numbers.to_multirange_text(),
                    &first,
                    &last,
                    &keep_seconds,
                ],
            )
            .await
            .map_err(MarkError::sql("remove rows that were sent"))?;
        let removed = read(&token, &row)?;
        // A statement that deleted nothing is rolled back too, where it was refused.
        if !removed.missed.is_empty() {
            let rolled_back = transaction.rollback().await;
            rolled_back.map_err(MarkError::sql("take a removal back"))?;
            self.reopen(&removed.missed).await?;
            return Ok(Removed {
                gone: RangeSet::new(),
                ..removed
            });
        }
        let committed = transaction.commit().await;
        committed.map_err(MarkError::sql("commit a removal"))?;
        Ok(removed)
    }

    /// The connection; a new one where the last has ended.
    async fn client(&mut self) -> Result<&mut Client, MarkError> {
        let is_open = |session: &postgres::SqlConnection| !session.client.is_closed();
        let session = match self.session.take().filter(is_open) {
            Some(session) => session,
            None => self.connect().await.map_err(|source| MarkError::Sql {
                what: "connect for retention",
                source,
            })?,
        };
        Ok(&mut self.session.insert(session).client)
    }

    async fn connect(&self) -> Result<postgres::SqlConnection, PostgresError> {
        let session = postgres::connect(&self.options, "retention").await?;
        session.client.batch_execute(SETTINGS).await?;
        Ok(session)
    }
}

fn read(token: &FencingToken, row: &tokio_postgres::Row) -> Result<Removed, MarkError> {
    if !row.get::<_, bool>("is_leader") {
        return Err(MarkError::NotLeader {
            outbox: token.outbox.clone(),
        });
    }
    let numbers = |column: &str| {
        RangeSet::parse_multirange(row.get(column)).map_err(|source| MarkError::Unreadable {
            outbox: token.outbox.clone(),
            source,
        })
    };
    let gone = numbers("gone")?;
    Ok(Removed {
        left: numbers("standing")?.difference(&gone),
        gone,
        has_young: row.get("has_young"),
        missed: numbers("missed")?,
        is_other_table: !row.get::<_, bool>("is_same"),
    })
}
