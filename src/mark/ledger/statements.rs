//! Every SQL statement on the ledger; each that writes checks the lease's epoch itself.

use std::collections::btree_map::{BTreeMap, Entry};
use std::ops::RangeInclusive;

use tokio_postgres::Client;

use super::{number_sql, numbers_of};
use crate::core::Delivered;
use crate::mark::{FencingToken, MarkError};
use crate::row::Lsn;
use crate::row::ranges::RangeSet;

/// Locks the lease against a taker for the length of the statement; `$1` outbox, `$2` epoch.
pub(crate) const LEASE: &str = "lease AS (SELECT FROM outboxd.lease WHERE outbox = $1 AND epoch = $2 AND NOT released FOR SHARE)";

/// What the ledger's rows of one segment say together, but for the numbers.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) generation: i32,
    pub(crate) segment: i64,
    pub(crate) is_closed: bool,
    pub(crate) high_lsn: Lsn,
    pub(crate) last_seq: i64,
    pub(crate) last_id: String,
}

pub(super) async fn heads(client: &Client, outbox: &str) -> Result<Vec<Head>, MarkError> {
    let sql = "SELECT generation, segment, bool_or(closed), max(high_lsn)::text, max(last_seq), \
               (array_agg(last_id ORDER BY last_seq DESC))[1] \
               FROM outboxd.ledger WHERE outbox = $1 GROUP BY generation, segment ORDER BY 1, 2";
    let rows = client
        .query(sql, &[&outbox])
        .await
        .map_err(MarkError::sql("read the ledger"))?;
    let head = |row: &tokio_postgres::Row| Head {
        generation: row.get(0),
        segment: row.get(1),
        is_closed: row.get(2),
        high_lsn: row
            .get::<_, &str>(3)
            .parse()
            .expect("PostgreSQL prints a pg_lsn as an LSN"),
        last_seq: row.get(4),
        last_id: row.get(5),
    };
    Ok(rows.iter().map(head).collect())
}

/// The sent numbers of each of these segments that has any.
pub(super) async fn sent(
    client: &Client,
    outbox: &str,
    generation: i32,
    segments: &[i64],
) -> Result<BTreeMap<i64, RangeSet>, MarkError> {
    let sql = "SELECT segment, sent::text FROM outboxd.ledger WHERE outbox = $1 AND generation = $2 AND segment = ANY ($3)";
    let rows = client
        .query(sql, &[&outbox, &generation, &segments])
        .await
        .map_err(MarkError::sql("read the ledger"))?;
    let mut sent: BTreeMap<i64, RangeSet> = BTreeMap::new();
    for row in &rows {
        let numbers = RangeSet::parse_multirange(row.get(1));
        let unreadable = |source| MarkError::Unreadable {
            outbox: outbox.to_owned(),
            source,
        };
        let numbers = numbers.map_err(unreadable)?;
        match sent.entry(row.get(0)) {
            Entry::Vacant(place) => drop(place.insert(numbers)),
            Entry::Occupied(mut known) => known.get_mut().extend(&numbers),
        }
    }
    Ok(sent)
}

/// What one checkpoint adds to one segment.
#[derive(Debug, Default)]
pub struct CheckpointRow {
    pub(crate) sent: RangeSet,
    pub(crate) high_lsn: Lsn,
    pub(crate) last_seq: i64,
    pub(crate) last_id: String,
}

impl CheckpointRow {
    /// Of the delivered rows those of one segment.
    pub(super) fn of(segment: i64, sent: &RangeSet, rows: &[Delivered]) -> Self {
        let numbers = numbers_of(segment);
        let number = |row: &Delivered| row.seq.filter(|seq| numbers.contains(seq));
        let last = rows.iter().max_by_key(|row| number(row));
        let high_lsn = rows
            .iter()
            .filter(|row| number(row).is_some())
            .map(|row| row.lsn)
            .max();
        Self {
            sent: sent.within(numbers.clone()).collect(),
            high_lsn: high_lsn.unwrap_or_default(),
            last_seq: last.and_then(number).unwrap_or_default(),
            last_id: last.map(|row| row.id.to_string()).unwrap_or_default(),
        }
    }
}

/// The rows of the ledger that one checkpoint writes.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) token: FencingToken,
    pub(crate) generation: i32,
    pub(crate) segments: BTreeMap<i64, CheckpointRow>,
}

impl Checkpoint {
    pub(in crate::mark) async fn run(&self, client: &Client) -> Result<(), MarkError> {
        let sql = format!(
            "WITH {LEASE} INSERT INTO outboxd.ledger \
             (outbox, generation, segment, sent, high_lsn, last_seq, last_id, epoch) \
             SELECT $1, $3, r.segment, r.sent::int8multirange, r.high_lsn::pg_lsn, r.last_seq, r.last_id, $2 \
             FROM lease, unnest($4::int8[], $5::text[], $6::text[], $7::int8[], $8::text[]) \
             AS r (segment, sent, high_lsn, last_seq, last_id)"
        );
        let segments: Vec<_> = self.segments.keys().copied().collect();
        let rows: Vec<_> = self.segments.values().collect();
        let sent: Vec<_> = rows
            .iter()
            .map(|row| row.sent.to_multirange_text())
            .collect();
        let high_lsn: Vec<_> = rows.iter().map(|row| row.high_lsn.to_string()).collect();
        let last_seq: Vec<_> = rows.iter().map(|row| row.last_seq).collect();
        let last_id: Vec<_> = rows.iter().map(|row| row.last_id.as_str()).collect();
        let FencingToken { outbox, epoch } = &self.token;
        let written = client
            .execute(
                &sql,
                &[
                    outbox,
                    epoch,
                    &self.generation,
                    &segments,
                    &sent,
                    &high_lsn,
                    &last_seq,
                    &last_id,
                ],
            )
            .await
            .map_err(MarkError::sql("write to the ledger"))?;
        match written {
            0 => Err(MarkError::NotLeader {
                outbox: outbox.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// Folds the checkpoints of each segment into one row, in one statement.
///
/// The `DELETE` checks the epoch, the `INSERT` reads only what it returned: a compactor that lost
/// its lease changes nothing, and no checkpoint can fall between the two.
pub async fn compact(client: &Client, token: &FencingToken) -> Result<u64, MarkError> {
    let sql = format!(
        "WITH {LEASE}, crowded AS (\
           SELECT generation, segment FROM outboxd.ledger WHERE outbox = $1 \
           GROUP BY generation, segment HAVING count(*) > 1), \
         gone AS (\
           DELETE FROM outboxd.ledger l USING lease, crowded c \
           WHERE l.outbox = $1 AND l.generation = c.generation AND l.segment = c.segment \
           RETURNING l.*) \
         INSERT INTO outboxd.ledger \
         (outbox, generation, segment, sent, high_lsn, last_seq, last_id, closed, retired, epoch, at) \
         SELECT g.outbox, g.generation, g.segment, range_agg(r), max(g.high_lsn), max(g.last_seq), \
           (array_agg(g.last_id ORDER BY g.last_seq DESC))[1], bool_or(g.closed), bool_or(g.retired), \
           max(g.epoch), max(g.at) \
         FROM gone g, unnest(g.sent) r GROUP BY g.outbox, g.generation, g.segment"
    );
    client
        .execute(&sql, &[&token.outbox, &token.epoch])
        .await
        .map_err(MarkError::sql("compact the ledger"))
}

/// Numbers that one statement of an audit compares: 10 ms, for which marks wait.
const SLICE_ROWS: i64 = 20_000;

fn slices(numbers: RangeInclusive<i64>) -> impl Iterator<Item = RangeInclusive<i64>> {
    let end = *numbers.end();
    let slice = move |start: i64| start..=end.min(start.saturating_add(SLICE_ROWS - 1));
    numbers.step_by(SLICE_ROWS as usize).map(slice)
}

/// The comparison of one segment with the table, before it is closed.
#[derive(Debug)]
pub struct Audit {
    pub(super) token: FencingToken,
    pub(super) generation: i32,
    pub segment: i64,
    pub(super) table: String,
    pub(super) seq: String,
    pub(super) accounted: RangeSet,
}

impl Audit {
    /// Closes the segment if the table holds no number that was neither sent nor skipped.
    ///
    /// Compares it in slices, between which marks go out on the same connection.
    /// Returns the missed numbers: empty when the segment was closed.
    pub async fn run(&self, client: &Client) -> Result<RangeSet, MarkError> {
        let sql = format!(
            "SELECT coalesce(range_agg({}), '{{}}')::text FROM {} \
             WHERE {} BETWEEN $1::int8 AND $2::int8",
            number_sql(&self.seq),
            self.table,
            self.seq
        );
        let failed = MarkError::sql("prepare the comparison of a segment");
        let statement = client.prepare(&sql).await.map_err(failed)?;
        let mut missed = RangeSet::new();
        for slice in slices(numbers_of(self.segment)) {
            let row = client
                .query_one(&statement, &[slice.start(), slice.end()])
                .await
                .map_err(MarkError::sql("compare a segment with the table"))?;
            let unreadable = |source| MarkError::Unreadable {
                outbox: self.token.outbox.clone(),
                source,
            };
            let standing = RangeSet::parse_multirange(row.get(0)).map_err(unreadable)?;
            missed.extend(&self.missed(&standing));
        }
        if missed.is_empty() {
            self.close(client).await?;
        }
        Ok(missed)
    }

    /// The numbers that stand in the table and were neither sent nor skipped.
    pub(crate) fn missed(&self, standing: &RangeSet) -> RangeSet {
        standing.difference(&self.accounted)
    }

    async fn close(&self, client: &Client) -> Result<(), MarkError> {
        let sql = format!(
            "WITH {LEASE} UPDATE outboxd.ledger l SET closed = true FROM lease \
             WHERE l.outbox = $1 AND l.generation = $3 AND l.segment = $4"
        );
        let FencingToken { outbox, epoch } = &self.token;
        client
            .execute(&sql, &[outbox, epoch, &self.generation, &self.segment])
            .await
            .map_err(MarkError::sql("close a segment"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slices_of_a_segment_are_all_of_its_numbers_once() {
        let numbers = numbers_of(3);
        let mut next = *numbers.start();
        for slice in slices(numbers.clone()) {
            assert_eq!(*slice.start(), next);
            assert!(slice.end() - slice.start() < SLICE_ROWS);
            next = slice.end() + 1;
        }
        assert_eq!(next, numbers.end() + 1);
        assert_eq!(slices(5..=7).collect::<Vec<_>>(), [5..=7]);
    }
}
