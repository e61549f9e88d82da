//! What is known of an outbox besides its numbers: where to start, what was skipped, which
//! generation of numbers is the current one.

use std::collections::HashSet;

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::config::Start;
use crate::row::ranges::{ParseMultirangeError, RangeSet};
use crate::row::{Layout, Lsn, OutboxRow};
pub use skipped::{Skipped, SkippedBy};

mod skipped;

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {what} of `{outbox}`")]
    Sql {
        what: &'static str,
        outbox: String,
        #[source]
        source: crate::postgres::PostgresError,
    },
    #[error("the skipped numbers of `{outbox}` can't be read")]
    Unreadable {
        outbox: String,
        #[source]
        source: ParseMultirangeError,
    },
}

/// One row of `outboxd.outbox`.
#[derive(Clone, Debug, Default)]
pub struct OutboxState {
    pub start: Option<Start>,
    /// The rows that stood before the slot were read; `false` too while the outbox is polled.
    pub caught_up: bool,
    pub generation: i32,
    /// The slot that the rows were read through last.
    pub slot: Option<String>,
    skipped: RangeSet,
    /// Bounds the commits of the rows that were skipped by their ids, which stand in `outboxd.skipped`.
    ids_skipped_until: Option<Lsn>,
}

/// What the positions of rows say of their commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commits {
    /// They are the commits'.
    Known,
    /// The commits are not above them: the rows were read from the table.
    Bounded,
}

/// How long the decision on a first start may take.
const DECISION_WITHIN: &str = "10min";

/// Reads and writes the state of one outbox.
#[derive(Clone, Copy)]
pub struct StateTable<'a> {
    pub client: &'a Client,
    pub outbox: &'a str,
}

impl StateTable<'_> {
    /// Loads the state; an outbox that nobody has seen before has the default one.
    pub async fn load(&self) -> Result<OutboxState, StateError> {
        let query = "SELECT start, caught_up, generation, skipped::text, \
                     CASE WHEN EXISTS (SELECT FROM outboxd.skipped s WHERE s.outbox = o.outbox) \
                     THEN coalesce(start_lsn, 'FFFFFFFF/FFFFFFFF') END, slot \
                     FROM outboxd.outbox o WHERE outbox = $1";
        let row = self.client.query_opt(query, &[&self.outbox]).await;
        let Some(row) = row.map_err(self.sql("read the state"))? else {
            return Ok(OutboxState {
                generation: 1,
                ..OutboxState::default()
            });
        };
        let skipped = RangeSet::parse_multirange(row.get(3));
        let unreadable = |source| StateError::Unreadable {
            outbox: self.outbox.to_owned(),
            source,
        };
        Ok(OutboxState {
            start: match row.get(0) {
                Some("all") => Some(Start::All),
                Some(_) => Some(Start::Now),
                None => None,
            },
            caught_up: row.get(1),
            generation: row.get(2),
            slot: row.get(5),
            skipped: skipped.map_err(unreadable)?,
            ids_skipped_until: row.get::<_, Option<PgLsn>>(4).map(|lsn| Lsn(lsn.into())),
        })
    }

    /// How many rows stand in the table, counted up to a bound.
    pub(crate) async fn rows_standing(
        &self,
        layout: &Layout,
        bound: i64,
    ) -> Result<i64, StateError> {
        let query = format!(
            "SELECT count(*) FROM (SELECT FROM {} LIMIT $1) AS bounded",
            layout.sql_name()
        );
        let row = self.client.query_one(&query, &[&bound]).await;
        Ok(row.map_err(self.sql("count the rows"))?.get(0))
    }

    /// Decides to publish everything that stands in the table.
    pub(crate) async fn start_with_all(&self) -> Result<(), StateError> {
        let statement = "INSERT INTO outboxd.outbox (outbox, start) VALUES ($1, 'all') \
                         ON CONFLICT (outbox) DO UPDATE SET start = 'all'";
        self.execute(statement, "decide the start").await
    }

    /// Decides to skip exactly the rows that are visible in one snapshot: this statement's.
    ///
    /// A table of any size is decided on in one transaction; a million ids take a few seconds.
    pub async fn start_now(&self, layout: &Layout, by: SkippedBy) -> Result<(), StateError> {
        let failed = self.sql("decide the start");
        let begin = format!("BEGIN; SET LOCAL statement_timeout = '{DECISION_WITHIN}'");
        let begun = self.client.batch_execute(&begin).await;
        begun.map_err(&failed)?;
        let decision = skipped::decision(layout, by);
        match self.execute(&decision, "decide the start").await {
            Ok(()) => self.client.batch_execute("COMMIT").await.map_err(&failed),
            Err(failure) => {
                // The connection's end rolls back, too.
                let _ = self.client.batch_execute("ROLLBACK").await;
                Err(failure)
            }
        }
    }

    /// Records whether the stream alone delivers from now on.
    pub(crate) async fn set_caught_up(&self, caught_up: bool) -> Result<(), StateError> {
        let statement =
            "UPDATE outboxd.outbox SET caught_up = $2 WHERE outbox = $1 AND caught_up <> $2";
        let done = self
            .client
            .execute(statement, &[&self.outbox, &caught_up])
            .await;
        done.map(drop).map_err(self.sql("record the catch-up"))
    }

    /// Records through which slot and publication the rows are read.
    pub(crate) async fn set_slot(&self, slot: &str, publication: &str) -> Result<(), StateError> {
        let statement = "INSERT INTO outboxd.outbox (outbox, slot, publication) VALUES ($1, $2, $3) \
                         ON CONFLICT (outbox) DO UPDATE SET slot = $2, publication = $3";
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&self.outbox, &slot, &publication];
        let done = self.client.execute(statement, &values).await;
        done.map(drop).map_err(self.sql("record the slot"))
    }

    /// Notes that the rows are polled: what a slot holds of them is published from the table.
    pub(crate) async fn note_polled(&self) -> Result<(), StateError> {
        let statement = "INSERT INTO outboxd.polled (outbox) VALUES ($1) ON CONFLICT DO NOTHING";
        self.execute(statement, "note the mode").await
    }

    /// Whether the rows were polled since a slot was read.
    pub(crate) async fn was_polled(&self) -> Result<bool, StateError> {
        let query = "SELECT EXISTS (SELECT FROM outboxd.polled WHERE outbox = $1)";
        let row = self.client.query_one(query, &[&self.outbox]).await;
        Ok(row.map_err(self.sql("read the mode"))?.get(0))
    }

    /// Notes that the slot has passed what was polled.
    pub(crate) async fn forget_polled(&self) -> Result<(), StateError> {
        let statement = "DELETE FROM outboxd.polled WHERE outbox = $1";
        self.execute(statement, "note the mode").await
    }

    /// Notes that a slot is this outbox's; `false` where it is another one's.
    pub(crate) async fn note_slot(
        &self,
        slot: &str,
        publication: &str,
    ) -> Result<bool, StateError> {
        let statement = "INSERT INTO outboxd.slot AS s (slot, outbox, publication) VALUES ($2, $1, $3) \
                         ON CONFLICT (slot) DO UPDATE SET publication = excluded.publication, at = clock_timestamp() \
                         WHERE s.outbox = excluded.outbox";
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&self.outbox, &slot, &publication];
        let done = self.client.execute(statement, &values).await;
        done.map(|rows| rows == 1)
            .map_err(self.sql("note the slot"))
    }

    /// Forgets the other slots of this outbox that do not stand any more.
    pub(crate) async fn forget_dropped_slots(&self, slot: &str) -> Result<(), StateError> {
        let statement = "DELETE FROM outboxd.slot s WHERE s.outbox = $1 AND s.slot <> $2 AND NOT EXISTS \
                         (SELECT FROM pg_catalog.pg_replication_slots r WHERE r.slot_name = s.slot)";
        let done = self.client.execute(statement, &[&self.outbox, &slot]).await;
        done.map(drop).map_err(self.sql("forget slots"))
    }

    /// Begins a new generation of numbers; the earlier ones keep what they sent.
    pub async fn begin_generation(&self, after: i32) -> Result<(), StateError> {
        let statement = "UPDATE outboxd.outbox SET generation = $2 + 1, skipped = '{}' \
                         WHERE outbox = $1 AND generation = $2";
        let done = self
            .client
            .execute(statement, &[&self.outbox, &after])
            .await;
        done.map(drop).map_err(self.sql("begin a new generation"))
    }

    async fn execute(&self, statement: &str, what: &'static str) -> Result<(), StateError> {
        let done = self.client.execute(statement, &[&self.outbox]).await;
        done.map(drop).map_err(self.sql(what))
    }

    fn sql(&self, what: &'static str) -> impl Fn(tokio_postgres::Error) -> StateError {
        let outbox = self.outbox.to_owned();
        move |source| StateError::Sql {
            what,
            outbox: outbox.clone(),
            source: source.into(),
        }
    }
}

impl OutboxState {
    /// The numbers that `source.start = "now"` skipped.
    pub fn skipped(&self) -> &RangeSet {
        &self.skipped
    }

    /// The ids of those of these rows that `now` skipped by their ids.
    ///
    /// Asks once for all that may be: a stream tells of what was committed later without being asked.
    pub(crate) async fn skipped_ids(
        &self,
        client: &Client,
        outbox: &str,
        rows: &[OutboxRow],
        commits: Commits,
    ) -> Result<HashSet<String>, tokio_postgres::Error> {
        let Some(until) = self.ids_skipped_until else {
            return Ok(HashSet::new());
        };
        let may_be = |row: &&OutboxRow| commits == Commits::Bounded || row.lsn <= until;
        let ids = rows.iter().filter(may_be);
        let ids: Vec<String> = ids
            .filter_map(|row| Some(row.id.as_ref()?.to_string()))
            .collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let sql = "SELECT id FROM outboxd.skipped WHERE outbox = $1 AND id = ANY ($2)";
        let found = client.query(sql, &[&outbox, &ids]).await?;
        Ok(found.iter().map(|row| row.get(0)).collect())
    }

    /// Which rows of a table `source.start = "now"` skipped, for SQL; `None` where it skipped none.
    pub(crate) fn skipped_in(&self, layout: &Layout) -> Option<Skipped> {
        match self.ids_skipped_until {
            Some(_) => Some(Skipped::by_ids(layout)),
            None => Skipped::by_numbers(layout, &self.skipped),
        }
    }

    /// Whether `source.start = "now"` skipped this row by its number.
    pub(crate) fn skips(&self, row: &OutboxRow) -> bool {
        row.seq.is_some_and(|seq| self.skipped.contains(seq))
    }
}
