//! Replaying what was kept whole, in order with what stands in the table.

use std::collections::HashMap;

use bytes::BytesMut;
use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql};

use crate::core::Delivered;
use crate::mark::ledger::{LEASE, segment_sql};
use crate::mark::{FencingToken, MarkError};
use crate::row::{Field, Layout, Lsn, OutboxRow, RowId};

/// Rows and bytes that one session replays; bounds memory, the next session goes on.
const REPLAY_ROWS: i64 = 1_000;
const REPLAY_BYTES: i64 = 16 << 20;

/// Which rows are to be replayed, and in which order.
pub(crate) struct Due<'a> {
    pub outbox: &'a str,
    pub generation: i32,
    pub order: ReplayOrder,
}

/// The order in which rows that were kept whole go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplayOrder {
    /// By `seq`, as what stands in the table: rows ahead of a dead letter may have died after it.
    ByNumber,
    /// As they were kept: all of them were, in order, or nothing tells it.
    AsKept,
}

/// The next rows to replay, with the numbers of their entries; the insert position bounds their commits.
pub(crate) async fn to_replay(
    client: &Client,
    due: &Due<'_>,
    layout: &Layout,
) -> Result<Vec<(i64, OutboxRow)>, MarkError> {
    let order = match due.order {
        ReplayOrder::ByNumber => "generation, seq NULLS FIRST, id",
        ReplayOrder::AsKept => "id",
    };
    let sql = format!(
        "SELECT id, generation = $2, columns, fields, left_out, pg_current_wal_insert_lsn() FROM (\
           SELECT *, sum(size) OVER (ORDER BY {order}) - size AS before FROM (\
             SELECT k.*, (SELECT coalesce(sum(octet_length(f)), 0) FROM unnest(k.fields) f)::int8 AS size \
             FROM outboxd.kept k WHERE k.outbox = $1 AND k.state = 'replay' \
             ORDER BY {order} LIMIT $3::int8) sized) summed \
         WHERE before < $4::int8 ORDER BY {order}"
    );
    let values: [&(dyn ToSql + Sync); 4] =
        [&due.outbox, &due.generation, &REPLAY_ROWS, &REPLAY_BYTES];
    let rows = client
        .query(&sql, &values)
        .await
        .map_err(MarkError::sql("read what is to be replayed"))?;
    let replay = |row: &tokio_postgres::Row| {
        let columns: Vec<&str> = row.get(2);
        let fields: Vec<Option<&[u8]>> = row.get(3);
        let left_out: Option<serde_json::Value> = row.get(4);
        let content = Content {
            columns,
            fields,
            left_out: left_out.unwrap_or_default(),
        };
        let lsn = Lsn(u64::from(row.get::<_, PgLsn>(5)));
        let mut kept = content.assemble(layout, lsn);
        if !row.get::<_, bool>(1) {
            // A number of an earlier generation says nothing in this one.
            kept.seq = None;
        }
        (row.get(0), kept)
    };
    Ok(rows.iter().map(replay).collect())
}

/// The copies that one session replays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// The numbers of their entries.
    entries: Vec<i64>,
    by_row: HashMap<(Option<i64>, RowId), i64>,
}

impl Copies {
    fn of(copies: &[(i64, OutboxRow)]) -> Self {
        let by_row = |(entry, row): &(i64, OutboxRow)| Some(((row.seq, row.id.clone()?), *entry));
        Self {
            entries: copies.iter().map(|(entry, _)| *entry).collect(),
            by_row: copies.iter().filter_map(by_row).collect(),
        }
    }

    /// The entries of all of them.
    pub(crate) fn entries(&self) -> &[i64] {
        &self.entries
    }
}

/// Which copies were replayed and marked, however their sessions ended: they are not to be replayed again.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    by_row: HashMap<(Option<i64>, RowId), i64>,
    marked: Vec<i64>,
}

impl Replayed {
    /// A session replays these.
    pub(crate) fn begin(&mut self, copies: &Copies) {
        let copies = copies.by_row.iter();
        self.by_row
            .extend(copies.map(|(row, entry)| (row.clone(), *entry)));
    }

    /// Rows were marked, maybe by a session after the one that replayed them.
    pub(crate) fn marked(&mut self, rows: &[Delivered]) {
        if self.by_row.is_empty() {
            return;
        }
        let keys = rows.iter().map(|row| (row.seq, row.id.clone()));
        let entries = keys.filter_map(|key| self.by_row.remove(&key));
        self.marked.extend(entries);
    }

    /// Takes the entries of what was marked.
    pub(crate) fn take_marked(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.marked)
    }
}

/// Rows that stand in the table, by `seq`.
#[derive(Debug, Default)]
pub(crate) struct RowsAhead {
    pub rows: Vec<OutboxRow>,
    /// There are more, above the last of these.
    pub is_cut: bool,
}

/// Puts what stands in the table among the copies, by `seq`; a copy that more of the table may come before waits.
pub(crate) fn merge(
    mut copies: Vec<(i64, OutboxRow)>,
    ahead: RowsAhead,
) -> (Copies, Vec<OutboxRow>) {
    if let (Some(last), true) = (ahead.rows.last(), ahead.is_cut) {
        copies.retain(|(_, copy)| copy.seq < last.seq);
    }
    let replayed = Copies::of(&copies);
    let mut rows: Vec<_> = copies.into_iter().map(|(_, row)| row).collect();
    if !ahead.rows.is_empty() {
        rows.extend(ahead.rows);
        rows.sort_by_key(|row| row.seq);
    }
    (replayed, rows)
}

/// What is kept of one row.
struct Content<'a> {
    columns: Vec<&'a str>,
    fields: Vec<Option<&'a [u8]>>,
    /// The sizes of the values that were not read, by column.
    left_out: serde_json::Value,
}

impl Content<'_> {
    /// The row as the table's columns are now; a column that it did not have is NULL.
    fn assemble(&self, layout: &Layout, lsn: Lsn) -> OutboxRow {
        let mut bytes = BytesMut::new();
        let mut place = |name: &str| {
            if let Some(size) = self.left_out.get(name).and_then(serde_json::Value::as_u64) {
                return Some(Field::too_large(size));
            }
            let index = self.columns.iter().position(|column| *column == name)?;
            let value = (*self.fields.get(index)?)?;
            let start = u32::try_from(bytes.len()).ok()?;
            bytes.extend_from_slice(value);
            let len = u32::try_from(value.len()).ok()?;
            Some(Field { start, len })
        };
        let fields = layout.columns.iter();
        let fields: Box<[Field]> = fields
            .map(|column| place(&column.name).unwrap_or(Field::null()))
            .collect();
        OutboxRow::new(layout, lsn, bytes.freeze(), fields)
    }
}

/// Takes rows out that were replayed and whose number the ledger holds: a crash came before they were taken out.
pub(crate) async fn take_out_sent(client: &Client, token: &FencingToken) -> Result<u64, MarkError> {
    let sql = format!(
        "WITH {LEASE} UPDATE outboxd.kept k SET state = 'replayed', at = clock_timestamp() FROM lease \
         WHERE k.outbox = $1 AND k.state = 'replay' AND EXISTS (\
           SELECT FROM outboxd.ledger l WHERE l.outbox = $1 AND l.generation = k.generation \
             AND l.segment = {} AND l.sent @> k.seq)",
        segment_sql("k.seq")
    );
    let done = client.execute(&sql, &[&token.outbox, &token.epoch]).await;
    done.map_err(MarkError::sql("take replayed rows out"))
}

/// Takes rows out that were replayed; those that were at fault again stay as they were recorded.
pub(crate) async fn replayed(
    client: &Client,
    token: &FencingToken,
    ids: &[i64],
) -> Result<(), MarkError> {
    let sql = format!(
        "WITH {LEASE} UPDATE outboxd.kept k SET state = 'replayed', at = clock_timestamp() FROM lease \
         WHERE k.outbox = $1 AND k.id = ANY ($3) AND k.state = 'replay'"
    );
    let done = client
        .execute(&sql, &[&token.outbox, &token.epoch, &ids])
        .await;
    done.map(drop)
        .map_err(MarkError::sql("take replayed rows out"))
}
