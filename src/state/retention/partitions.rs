//! A table that is partitioned by ranges of `seq`: new partitions are made ahead, old ones are detached, checked, dropped.
//!
//! A partition is detached before it is checked, so that nothing can be written into it any more, and attached again where
//! a row stands in it that was not sent. One that a crash left detached is attached again before anything else.

use std::collections::HashSet;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::{Client, Transaction};
use tracing::debug;

use super::plan::{Bounds, Partition, may_go, to_make};
use crate::mark::ledger::{LEASE, number_sql, segment_of};
use crate::mark::{FencingToken, MarkError};
use crate::postgres::PostgresError;
use crate::postgres::catalog::suffixed;
use crate::postgres::catalog::{Table, qualified};
use crate::row::ranges::RangeSet;

/// How long a check of a whole partition may take; the table is not locked meanwhile.
const CHECK: &str =
    "SET LOCAL statement_timeout = '60s'; SET LOCAL idle_in_transaction_session_timeout = '60s'";
/// What a statement says that has waited for a lock long enough.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// How the comment of a partition begins while it is detached.
const DETACHED: &str = "outboxd: detached from ";

/// The partitions of one outbox.
#[derive(Debug)]
pub(super) struct Partitions {
    table: Table,
    /// Partitions of which every row is old enough.
    old: HashSet<String>,
}

/// Whose partitions, how old a row must be, and which numbers may go.
pub(super) struct Tending<'a> {
    pub(super) token: &'a FencingToken,
    pub(super) generation: i32,
    pub(super) keep_seconds: f64,
    /// Settled, and not spared.
    pub(super) removable: &'a RangeSet,
}

/// What became of the partitions.
#[derive(Debug, Default)]
pub(crate) struct Tended {
    /// The rows of a partition that was dropped.
    pub rows: Option<u64>,
    /// Rows that the ledger does not have, in a partition that was attached again.
    pub missed: RangeSet,
    /// The numbers whose rows go one by one: of the default partition, and of old ones of which not every row may go.
    pub by_row: RangeSet,
}

impl Partitions {
    pub(super) fn new(table: &Table) -> Self {
        Self {
            table: table.clone(),
            old: HashSet::new(),
        }
    }

    /// Makes partitions ahead and drops one old one at most; nothing where the table is partitioned in another way.
    pub(super) async fn maintain_partitions(
        &mut self,
        client: &mut Client,
        tending: &Tending<'_>,
    ) -> Result<Option<Tended>, MarkError> {
        if !self.is_by_seq(client).await? {
            return Ok(None);
        }
        self.attach_left_ones(client, tending.token).await?;
        let partitions = self.partitions(client).await?;
        let (newest, highest) = self.ends(client).await?;
        for bounds in to_make(&partitions, newest) {
            self.make(client, tending.token, bounds).await?;
        }
        let mut tended = Tended::default();
        let first = self.table.first_number();
        let mut covered = RangeSet::new();
        for partition in &partitions {
            covered.insert_range(partition.bounds.numbers(first));
        }
        tended.by_row = covered.gaps(first..=i64::MAX).collect();
        for partition in &partitions {
            let numbers = partition.bounds.numbers(first);
            if *numbers.end() >= highest || !self.is_old(client, partition, tending).await? {
                break;
            }
            if !may_go(numbers.clone(), tending.removable, highest) {
                tended.by_row.insert_range(numbers);
                continue;
            }
            match self.retire(client, partition, tending, &mut tended).await {
                Err(failure) if is_locked(&failure) => {
                    debug!(
                        partition = partition.name,
                        "transactions are open that may write into it"
                    );
                }
                outcome => outcome?,
            }
            break;
        }
        Ok(Some(tended))
    }

    async fn is_by_seq(&self, client: &Client) -> Result<bool, MarkError> {
        let seq = self.table.layout.names.of("seq");
        let row = client.query_one(BY_SEQ, &[&self.table.oid, &seq]).await;
        Ok(row.map_err(failed)?.get(0))
    }

    /// The column of the numbers, for SQL.
    fn seq(&self) -> String {
        self.table.layout.names.sql("seq")
    }

    /// In the order of their numbers.
    async fn partitions(&self, client: &Client) -> Result<Vec<Partition>, MarkError> {
        let rows = client.query(PARTITIONS, &[&self.table.oid]).await;
        let partition = |row: &tokio_postgres::Row| {
            Some(Partition {
                name: row.get(0),
                bounds: Bounds::parse(row.get(1))?,
            })
        };
        let mut partitions: Vec<_> = rows.map_err(failed)?.iter().filter_map(partition).collect();
        partitions.sort_by_key(|partition| partition.bounds);
        Ok(partitions)
    }

    /// The newest number that was given, and the highest that stands in the table.
    async fn ends(&self, client: &Client) -> Result<(i64, i64), MarkError> {
        let Some(sequence) = self.table.sequence() else {
            return Ok((i64::MIN, i64::MIN));
        };
        let sql = format!(
            "SELECT s.last_value, coalesce((SELECT max({}) FROM {}), '{}')::int8 FROM {} s",
            self.seq(),
            self.table.name(),
            i64::MIN,
            sequence.name
        );
        let row = client.query_one(&sql, &[]).await.map_err(failed)?;
        Ok((row.get(0), row.get(1)))
    }

    /// Beside the table first: ATTACH lets INSERTs go on, CREATE … PARTITION OF does not.
    async fn make(
        &self,
        client: &mut Client,
        token: &FencingToken,
        bounds: Bounds,
    ) -> Result<(), MarkError> {
        let (schema, table) = (&self.table.layout.schema, self.table.name());
        let from = bounds.from.unwrap_or_default();
        let name = suffixed(&self.table.layout.table, &format!("_p{from}"));
        let name = qualified(schema, &name);
        let owner = escape_identifier(&self.table.owner);
        let sql = format!(
            "CREATE TABLE {name} (LIKE {table} INCLUDING ALL EXCLUDING IDENTITY); \
             ALTER TABLE {name} OWNER TO {owner}; \
             ALTER TABLE {table} ATTACH PARTITION {name} {}",
            bounds.sql()
        );
        self.change(client, token, &sql).await
    }

    /// Whether every row is old enough: the newest one is looked at first.
    async fn is_old(
        &mut self,
        client: &mut Client,
        partition: &Partition,
        tending: &Tending<'_>,
    ) -> Result<bool, MarkError> {
        let name = &partition.name;
        if self.old.contains(name) {
            return Ok(true);
        }
        let (seq, created) = (self.seq(), self.table.layout.names.sql("created_at"));
        let young = format!("NOT coalesce({created} < now() - make_interval(secs => $1), false)");
        let newest = format!(
            "SELECT EXISTS (SELECT FROM (SELECT * FROM {name} ORDER BY {seq} DESC LIMIT 1) newest WHERE {young})"
        );
        let any = format!("SELECT EXISTS (SELECT FROM {name} WHERE {young})");
        let transaction = long(client).await?;
        for sql in [newest, any] {
            let row = transaction.query_one(&sql, &[&tending.keep_seconds]).await;
            if row.map_err(failed)?.get(0) {
                return Ok(false);
            }
        }
        self.old.insert(name.clone());
        Ok(true)
    }

    /// Detaches, compares with the ledger, drops; or attaches again.
    async fn retire(
        &mut self,
        client: &mut Client,
        partition: &Partition,
        tending: &Tending<'_>,
        tended: &mut Tended,
    ) -> Result<(), MarkError> {
        let (table, name) = (self.table.name(), &partition.name);
        let comment = format!(
            "{DETACHED}{} {}",
            self.table.layout.outbox(),
            partition.bounds.sql()
        );
        let detach = format!(
            "ALTER TABLE {table} DETACH PARTITION {name}; COMMENT ON TABLE {name} IS {}",
            escape_literal(&comment)
        );
        if !self.detach(client, tending.token, &detach).await? {
            return Ok(());
        }
        let (rows, missed) = self.compare(client, partition, tending).await?;
        if missed.is_empty() {
            self.change(client, tending.token, &format!("DROP TABLE {name}"))
                .await?;
            tended.rows = Some(rows);
        } else {
            self.attach(client, tending.token, partition).await?;
            tended.missed = missed;
        }
        Ok(())
    }

    /// Detaches, unless the numbers are others than those of which the ledger speaks: nobody truncates the table meanwhile.
    async fn detach(
        &self,
        client: &mut Client,
        token: &FencingToken,
        sql: &str,
    ) -> Result<bool, MarkError> {
        let Some(sequence) = self.table.sequence() else {
            return Ok(false);
        };
        let transaction = client.transaction().await.map_err(failed)?;
        hold_lease(&transaction, token).await?;
        let detached = transaction.batch_execute(sql).await;
        detached.map_err(MarkError::sql("detach a partition"))?;
        let same = "SELECT FROM pg_catalog.pg_class WHERE oid = $1 AND relfilenode = $2";
        let same = transaction
            .query_opt(same, &[&sequence.oid, &sequence.filenode])
            .await;
        if same.map_err(failed)?.is_none() {
            return Ok(false);
        }
        transaction.commit().await.map_err(failed)?;
        Ok(true)
    }

    /// Counts the rows of a partition and gives those that the ledger does not have.
    async fn compare(
        &self,
        client: &mut Client,
        partition: &Partition,
        tending: &Tending<'_>,
    ) -> Result<(u64, RangeSet), MarkError> {
        let seq = self.seq();
        let sql = format!(
            "WITH sent AS MATERIALIZED (SELECT coalesce(range_agg(r), '{{}}') AS numbers \
               FROM outboxd.ledger l, unnest(l.sent) r WHERE l.outbox = $1 AND l.generation = $2 \
               AND l.segment BETWEEN $3 AND $4) \
             SELECT count(*), coalesce(range_agg({}) \
               FILTER (WHERE NOT sent.numbers @> {seq}::int8), '{{}}')::text FROM {}, sent",
            number_sql(&seq),
            partition.name
        );
        let transaction = long(client).await?;
        let (from, to) = (
            segment_of(partition.bounds.from.unwrap_or(i64::MIN)),
            segment_of(partition.bounds.to.saturating_sub(1)),
        );
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&tending.token.outbox, &tending.generation, &from, &to];
        let row = transaction.query_one(&sql, &parameters).await;
        let row = row.map_err(MarkError::sql("compare a partition with the ledger"))?;
        let missed = RangeSet::parse_multirange(row.get(1));
        let missed = missed.map_err(|source| MarkError::Unreadable {
            outbox: tending.token.outbox.clone(),
            source,
        })?;
        let rows = u64::try_from(row.get::<_, i64>(0)).unwrap_or_default();
        Ok((rows, missed))
    }

    /// Attaches what a process that died has left detached.
    async fn attach_left_ones(
        &self,
        client: &mut Client,
        token: &FencingToken,
    ) -> Result<(), MarkError> {
        let begins = format!("{DETACHED}{} ", self.table.layout.outbox());
        let rows = client.query(LEFT, &[&self.table.oid, &begins]).await;
        for row in &rows.map_err(failed)? {
            let comment: &str = row.get(1);
            let Some(bounds) = comment.strip_prefix(&begins).and_then(Bounds::parse) else {
                continue;
            };
            let partition = Partition {
                name: row.get(0),
                bounds,
            };
            self.attach(client, token, &partition).await?;
        }
        Ok(())
    }

    async fn attach(
        &self,
        client: &mut Client,
        token: &FencingToken,
        partition: &Partition,
    ) -> Result<(), MarkError> {
        let (table, name) = (self.table.name(), &partition.name);
        let sql = format!(
            "{CHECK}; ALTER TABLE {table} ATTACH PARTITION {name} {}; COMMENT ON TABLE {name} IS NULL",
            partition.bounds.sql()
        );
        self.change(client, token, &sql).await
    }

    /// Changes partitions in one transaction under the lease.
    async fn change(
        &self,
        client: &mut Client,
        token: &FencingToken,
        sql: &str,
    ) -> Result<(), MarkError> {
        let transaction = client.transaction().await.map_err(failed)?;
        hold_lease(&transaction, token).await?;
        let changed = transaction.batch_execute(sql).await;
        changed.map_err(MarkError::sql("change a partition"))?;
        transaction.commit().await.map_err(failed)
    }
}

/// A transaction that may read a whole partition; rolled back when it is dropped.
async fn long(client: &mut Client) -> Result<Transaction<'_>, MarkError> {
    let transaction = client.transaction().await.map_err(failed)?;
    transaction.batch_execute(CHECK).await.map_err(failed)?;
    Ok(transaction)
}

/// Holds the lease against a taker until the transaction ends.
async fn hold_lease(transaction: &Transaction<'_>, token: &FencingToken) -> Result<(), MarkError> {
    let sql = format!("WITH {LEASE} SELECT FROM lease");
    let held = transaction
        .query_opt(&sql, &[&token.outbox, &token.epoch])
        .await;
    held.map_err(failed)?
        .map(drop)
        .ok_or_else(|| MarkError::NotLeader {
            outbox: token.outbox.clone(),
        })
}

fn is_locked(failure: &MarkError) -> bool {
    matches!(failure, MarkError::Sql { source: PostgresError::Server(error), .. } if error.sqlstate == LOCK_NOT_AVAILABLE)
}

fn failed(error: tokio_postgres::Error) -> MarkError {
    MarkError::sql("look at the partitions")(error)
}

const BY_SEQ: &str = "
    SELECT EXISTS (SELECT FROM pg_catalog.pg_partitioned_table p
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid AND a.attname = $2
                   WHERE p.partrelid = $1 AND p.partstrat = 'r' AND p.partnatts = 1 AND p.partattrs[0] = a.attnum)";

const PARTITIONS: &str = "
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.pg_get_expr(c.relpartbound, c.oid)
    FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE i.inhparent = $1";

/// Only what belongs to the table's owner: anybody may write a comment on a table of his own.
const LEFT: &str = "
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), d.description
    FROM pg_catalog.pg_class root
    JOIN pg_catalog.pg_class c ON c.relnamespace = root.relnamespace AND c.relowner = root.relowner
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_description d
        ON d.objoid = c.oid AND d.classoid = 'pg_catalog.pg_class'::regclass AND d.objsubid = 0
    WHERE root.oid = $1 AND c.relkind = 'r' AND NOT c.relispartition AND starts_with(d.description, $2)";
