//! The SQL of marks in rows, and its parameters.

use std::fmt::Write;

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::types::ToSql;

use crate::config::Mark;
use crate::core::Delivered;
use crate::mark::ledger::LEASE;
use crate::postgres::catalog::{SeqIndex, Table};
use crate::row::{Lsn, Origin};

/// Numbers between the lowest and the highest row, for each row, up to which they are read in the order of their numbers:
/// that takes a fifth of the time that finding each row by a random uuid does (delete: 45k against 250–300k rows/s).
const SPREAD_MAX: u64 = 16;

/// What the statements on one table are made of.
#[derive(Debug)]
pub(super) struct Sql {
    table: String,
    id: String,
    id_type: String,
    seq: Option<String>,
    pub(super) seq_index: SeqIndex,
    /// The texts of its aggregate's type and id.
    aggregate: [String; 2],
    sets_sent_at: bool,
    sent_at: String,
}

/// What a statement writes into `outboxd.marked`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Recording {
    Nothing,
    /// The rows that it marks, and the position that may be confirmed.
    Marks(Lsn),
    /// That no mark is owed any more, if none of the rows has to wait again.
    Payment,
}

/// How the rows of a batch are found.
#[derive(Debug)]
enum Access {
    Range(i64, i64),
    Numbers(Vec<i64>),
    Ids(Vec<String>),
}

/// The parameters that name some rows, and how they are found.
#[derive(Debug)]
pub(super) struct Batch {
    access: Access,
    /// Of rows whose version does not matter.
    keys: Vec<String>,
    /// Of rows that were read from the table: with the version.
    versions: Vec<String>,
}

/// Of a uuid, a number of some digits and the version.
const KEY_LEN: usize = 64;

/// What tells a row from all others of its table, as [`Sql::key`] prints it: its id, and its number where there are any.
pub(super) fn key(row: &Delivered, sql: &Sql) -> String {
    let mut key = String::with_capacity(KEY_LEN);
    row.id.write_to(&mut key);
    if sql.seq.is_some() {
        key.push(' ');
        if let Some(seq) = row.seq {
            let _ = write!(key, "{seq}");
        }
    }
    key
}

impl Batch {
    pub(super) fn of(rows: &[Delivered], sql: &Sql) -> Self {
        let mut batch = Self {
            access: sql.access(rows),
            keys: Vec::new(),
            versions: Vec::new(),
        };
        for row in rows {
            match row.origin {
                Origin::Table { xmin } => {
                    let mut version = key(row, sql);
                    // A String takes every text.
                    let _ = write!(version, " {xmin}");
                    batch.versions.push(version);
                }
                Origin::Unknown | Origin::Stream { .. } | Origin::Before { .. } => {
                    batch.keys.push(key(row, sql));
                }
            }
        }
        batch
    }

    /// The parameters of a statement: those that stand before, then the batch's own.
    pub(super) fn values<'a>(
        &'a self,
        before: &[&'a (dyn ToSql + Sync)],
    ) -> Vec<&'a (dyn ToSql + Sync)> {
        let mut values = before.to_vec();
        match &self.access {
            Access::Range(low, high) => values.extend([low as &(dyn ToSql + Sync), high]),
            Access::Numbers(numbers) => values.push(numbers),
            Access::Ids(ids) => values.push(ids),
        }
        for keys in [&self.keys, &self.versions] {
            if !keys.is_empty() {
                values.push(keys);
            }
        }
        values
    }
}

impl Sql {
    pub(super) fn new(mark: Mark, table: &Table) -> Self {
        let layout = &table.layout;
        let name = |column: usize| escape_identifier(&layout.columns[column].name);
        Self {
            table: layout.sql_name(),
            id: name(layout.id),
            id_type: layout.columns[layout.id].type_name.clone(),
            seq: layout.seq.map(name),
            seq_index: table.seq.as_ref().map_or(SeqIndex::None, |seq| seq.index),
            aggregate: [layout.aggregate_type, layout.aggregate_id]
                .map(|column| layout.columns[column].text()),
            sets_sent_at: mark == Mark::SentAt,
            sent_at: layout.names.sql("sent_at"),
        }
    }

    /// Whether a number alone tells a row from all others.
    pub(super) fn has_unique_numbers(&self) -> bool {
        self.seq_index == SeqIndex::Unique
    }

    fn access(&self, rows: &[Delivered]) -> Access {
        let numbers: Option<Vec<i64>> = rows.iter().map(|row| row.seq).collect();
        match (self.seq_index, numbers) {
            (SeqIndex::None, _) | (_, None) => {
                Access::Ids(rows.iter().map(|row| row.id.text()).collect())
            }
            (_, Some(numbers)) => match close_together(&numbers) {
                Some((low, high)) => Access::Range(low, high),
                None => Access::Numbers(numbers),
            },
        }
    }

    /// The text of a row's key: by the types' output functions, as rows are read.
    fn key(&self) -> String {
        match &self.seq {
            Some(seq) => format!("pg_catalog.concat(o.{}, ' ', o.{seq})", self.id),
            None => format!("pg_catalog.concat(o.{})", self.id),
        }
    }

    /// Whether `o` is a row of the batch, whose parameters begin behind `$first`.
    fn is_of(&self, batch: &Batch, first: usize) -> String {
        let mut next = first;
        let mut place = || {
            next += 1;
            next
        };
        let seq = self.seq.as_deref().unwrap_or_default();
        let access = match &batch.access {
            Access::Range(..) => {
                format!("o.{seq} BETWEEN ${}::int8 AND ${}::int8", place(), place())
            }
            Access::Numbers(_) => format!("o.{seq} = ANY (${}::int8[])", place()),
            Access::Ids(_) => format!(
                "o.{} = ANY ((${}::text[])::{}[])",
                self.id,
                place(),
                self.id_type
            ),
        };
        let mut keys = Vec::new();
        if !batch.keys.is_empty() {
            keys.push(format!("{} = ANY (${}::text[])", self.key(), place()));
        }
        if !batch.versions.is_empty() {
            let key = self.key();
            keys.push(format!(
                "pg_catalog.concat({key}, ' ', o.xmin) = ANY (${}::text[])",
                place()
            ));
        }
        format!("{access} AND ({})", keys.join(" OR "))
    }

    fn is_unsent(&self) -> String {
        match self.sets_sent_at {
            true => format!(" AND o.{} IS NULL", self.sent_at),
            false => String::new(),
        }
    }

    /// Marks the rows of the batch; says whether the lease is held and how many rows were marked.
    ///
    /// `$1` outbox, `$2` epoch; with a recording `$3` a bound of the commits and `$4` the position, both as text.
    pub(super) fn mark(&self, batch: &Batch, recording: Recording) -> String {
        let (first, recorded) = match recording {
            Recording::Nothing | Recording::Payment => (2, String::new()),
            Recording::Marks(_) => (4, self.recorded()),
        };
        let (table, rows, unsent) = (&self.table, self.is_of(batch, first), self.is_unsent());
        let sent_at = &self.sent_at;
        let (verb, is_marked) = match self.sets_sent_at {
            true => (
                format!("UPDATE {table} AS o SET {sent_at} = pg_catalog.clock_timestamp()"),
                format!("o.{sent_at} IS NOT NULL"),
            ),
            false => (format!("DELETE FROM {table} AS o"), "true".to_owned()),
        };
        let number = match &self.seq {
            Some(seq) => format!("o.{seq}::int8"),
            None => "NULL::int8".to_owned(),
        };
        let id = format!("pg_catalog.concat(o.{})", self.id);
        let given = match recording {
            Recording::Nothing | Recording::Payment => String::new(),
            Recording::Marks(_) if self.has_unique_numbers() => format!(", {number} AS seq"),
            Recording::Marks(_) => format!(", {number} AS seq, {id} AS id"),
        };
        // A trigger may undo what the statement sets.
        format!(
            "WITH {LEASE}, marked AS ({verb} WHERE {rows}{unsent} AND EXISTS (SELECT FROM lease) \
               RETURNING {is_marked} AS is_marked{given}){recorded} \
             SELECT (SELECT count(*) FROM lease), (SELECT count(*) FROM marked WHERE is_marked)"
        )
    }

    fn recorded(&self) -> String {
        let of = match self.has_unique_numbers() {
            true => "range_agg(int8range(m.seq, m.seq, '[]')), NULL::text[], NULL::int8[]",
            false => "NULL::int8multirange, array_agg(m.id), array_agg(m.seq)",
        };
        format!(
            ", pruned AS (DELETE FROM outboxd.marked p USING lease \
               WHERE p.outbox = $1 AND p.high_lsn < ($4::text)::pg_lsn AND p.owed_ids IS NULL \
                 AND EXISTS (SELECT FROM marked WHERE is_marked)), \
             noted AS (INSERT INTO outboxd.marked (outbox, numbers, ids, seqs, high_lsn, resolved, epoch) \
               SELECT $1, {of}, ($3::text)::pg_lsn, ($4::text)::pg_lsn, $2 FROM marked m \
               WHERE m.is_marked HAVING count(*) > 0)"
        )
    }

    /// Reads the keys of the rows that still stand unsent, as they were read, with the snapshot that shows it.
    pub(super) fn standing(&self, batch: &Batch) -> String {
        let (table, rows, unsent) = (&self.table, self.is_of(batch, 0), self.is_unsent());
        let key = self.key();
        format!(
            "SELECT pg_catalog.pg_current_snapshot()::text, \
             ARRAY(SELECT {key} FROM {table} AS o WHERE {rows}{unsent})"
        )
    }

    /// Reads the keys of the rows that stand, each with its aggregate's type and id as rows are read.
    pub(super) fn aggregates(&self, batch: &Batch) -> String {
        let (table, rows, key) = (&self.table, self.is_of(batch, 0), self.key());
        let [kind, id] = &self.aggregate;
        format!("SELECT {key}, {kind}, {id} FROM {table} AS o WHERE {rows}")
    }

    /// Reads the keys of the rows that carry their mark; `None` where a marked row does not stand any more.
    pub(super) fn sent(&self, batch: &Batch) -> Option<String> {
        if !self.sets_sent_at || batch.keys.is_empty() {
            return None;
        }
        let (table, rows, key) = (&self.table, self.is_of(batch, 0), self.key());
        let sent_at = &self.sent_at;
        Some(format!(
            "SELECT {key} FROM {table} AS o WHERE {rows} AND o.{sent_at} IS NOT NULL"
        ))
    }
}

/// The lowest and the highest number of rows that leave out few numbers between them.
fn close_together(numbers: &[i64]) -> Option<(i64, i64)> {
    let (low, high) = (*numbers.iter().min()?, *numbers.iter().max()?);
    let between = high.checked_sub(low)?.unsigned_abs();
    (between / SPREAD_MAX < numbers.len() as u64).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_a_range_only_where_it_holds_few_others() {
        assert_eq!(close_together(&[7, 5, 9]), Some((5, 9)));
        assert_eq!(close_together(&[5, 36]), Some((5, 36)));
        assert_eq!(close_together(&[5, 37]), None);
        assert_eq!(close_together(&[i64::MIN, i64::MAX]), None);
    }
}
