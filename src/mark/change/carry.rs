//! Entering what one mark recorded into another, a bounded piece at a time; begun again after a crash it ends the same.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tracing::info;

use super::Carry;
use crate::mark::ledger::{LEASE, numbers_of, segment_of};
use crate::mark::{FencingToken, MarkError};
use crate::postgres::catalog::Table;
use crate::row::ranges::RangeSet;

/// Numbers that one statement looks at.
const NUMBERS_MAX: i64 = 20_000;
/// Ranges that one statement carries.
const RANGES_MAX: usize = 1_000;

/// Why the marks could not be carried over.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// The commits of rows that were sent may be flushed and not yet visible.
    #[error(
        "{missing} rows that were sent are not to be seen, and transactions that write to the table are open: the change of \
         the mark waits for them"
    )]
    NotVisible { missing: u64 },
    /// They would be sent again.
    #[error(
        "{rows} rows that were sent keep `sent_at` as it is, NULL: a trigger or a rule undoes what is written"
    )]
    Kept { rows: u64 },
}

/// Whose marks are carried over.
#[derive(Clone, Copy, Debug)]
pub struct Carried<'a> {
    pub outbox: &'a str,
    pub generation: i32,
    pub table: &'a Table,
    pub token: &'a FencingToken,
}

/// Enters what the former mark recorded into the new one.
///
/// Errors: `NotVisible` while rows that were sent may still appear, worth another try; `Kept` where a person must act.
/// Cancel-safe: yes; what was entered stays, and the next try goes over it again.
pub async fn carry(client: &Client, what: Carry, carried: &Carried<'_>) -> Result<(), CarryError> {
    let Some((first, last)) = bounds(client, carried.table).await? else {
        return Ok(());
    };
    let rows = match what {
        Carry::LedgerToSentAt => ledger_to_sent_at(client, carried, first, last).await?,
        Carry::SentAtToLedger => sent_at_to_ledger(client, carried, first, last).await?,
    };
    info!(rows, "what the former mark recorded is carried over");
    Ok(())
}

/// The lowest and the highest number that stand.
async fn bounds(client: &Client, table: &Table) -> Result<Option<(i64, i64)>, MarkError> {
    let (name, seq) = (table.name(), table.layout.names.sql("seq"));
    let sql = format!("SELECT min({seq})::int8, max({seq})::int8 FROM {name}");
    let row = client.query_one(&sql, &[]).await;
    let row = row.map_err(MarkError::sql("read the table's numbers"))?;
    let (first, last): (Option<i64>, Option<i64>) = (row.get(0), row.get(1));
    Ok(first.zip(last))
}

/// Sets `sent_at` of the rows in the ledger to when their checkpoint was written.
async fn ledger_to_sent_at(
    client: &Client,
    carried: &Carried<'_>,
    first: i64,
    last: i64,
) -> Result<u64, CarryError> {
    let (mut sent, mut found, mut kept) = (0, 0, 0);
    for segment in segments(client, carried, first, last).await? {
        let (numbers, at) = of_segment(client, carried, segment).await?;
        let standing: RangeSet = numbers.within(first..=last).collect();
        sent += standing.len();
        for piece in pieces(&standing) {
            found += set_sent_at(client, carried, &piece, &at).await?;
            kept += unsent(client, carried, &piece).await?;
        }
    }
    if kept > 0 {
        return Err(CarryError::Kept { rows: kept });
    }
    let missing = sent.saturating_sub(found);
    if missing > 0 && has_writers(client, carried.table).await? {
        return Err(CarryError::NotVisible { missing });
    }
    Ok(found)
}

async fn segments(
    client: &Client,
    carried: &Carried<'_>,
    first: i64,
    last: i64,
) -> Result<Vec<i64>, MarkError> {
    let sql = "SELECT DISTINCT segment FROM outboxd.ledger WHERE outbox = $1 AND generation = $2 \
               AND segment BETWEEN $3 AND $4 ORDER BY segment";
    let (from, to) = (segment_of(first), segment_of(last));
    let values: [&(dyn ToSql + Sync); 4] = [&carried.outbox, &carried.generation, &from, &to];
    let rows = client.query(sql, &values).await;
    let rows = rows.map_err(MarkError::sql("read the ledger"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The sent numbers of a segment, and when the last of them was recorded, as text.
async fn of_segment(
    client: &Client,
    carried: &Carried<'_>,
    segment: i64,
) -> Result<(RangeSet, String), MarkError> {
    let sql = "SELECT sent::text, at::text FROM outboxd.ledger \
               WHERE outbox = $1 AND generation = $2 AND segment = $3 ORDER BY at";
    let values: [&(dyn ToSql + Sync); 3] = [&carried.outbox, &carried.generation, &segment];
    let rows = client.query(sql, &values).await;
    let rows = rows.map_err(MarkError::sql("read the ledger"))?;
    let (mut sent, mut at) = (RangeSet::new(), String::new());
    for row in &rows {
        let numbers = RangeSet::parse_multirange(row.get(0));
        let unreadable = |source| MarkError::Unreadable {
            outbox: carried.outbox.to_owned(),
            source,
        };
        sent.extend(&numbers.map_err(unreadable)?);
        at = row.get(1);
    }
    Ok((sent, at))
}

/// Cuts a set into pieces that one statement can take.
fn pieces(numbers: &RangeSet) -> Vec<Vec<(i64, i64)>> {
    let (mut pieces, mut piece, mut room) = (Vec::new(), Vec::new(), NUMBERS_MAX);
    for range in numbers.ranges() {
        let (mut low, high) = range.into_inner();
        loop {
            let end = high.min(low.saturating_add(room - 1));
            piece.push((low, end));
            room -= end - low + 1;
            if room == 0 || piece.len() == RANGES_MAX {
                pieces.push(std::mem::take(&mut piece));
                room = NUMBERS_MAX;
            }
            if end == high {
                break;
            }
            low = end + 1;
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// Gives back how many of the numbers stand.
async fn set_sent_at(
    client: &Client,
    carried: &Carried<'_>,
    piece: &[(i64, i64)],
    at: &str,
) -> Result<u64, MarkError> {
    let table = carried.table.name();
    let names = &carried.table.layout.names;
    let (seq, sent_at) = (names.sql("seq"), names.sql("sent_at"));
    let sql = format!(
        "WITH {LEASE}, piece AS (SELECT * FROM unnest($3::int8[], $4::int8[]) AS r (low, high)), \
         done AS (UPDATE {table} o SET {sent_at} = $5::text::timestamptz FROM piece, lease \
                  WHERE o.{seq} BETWEEN piece.low AND piece.high AND o.{sent_at} IS NULL) \
         SELECT (SELECT count(*) FROM {table} o, piece WHERE o.{seq} BETWEEN piece.low AND piece.high), \
                (SELECT count(*) FROM lease)"
    );
    let (lows, highs): (Vec<i64>, Vec<i64>) = piece.iter().copied().unzip();
    let FencingToken { outbox, epoch } = carried.token;
    let values: [&(dyn ToSql + Sync); 5] = [outbox, epoch, &lows, &highs, &at];
    counted(client, &sql, &values, "carry marks over", outbox).await
}

/// How many of the numbers still stand unsent.
async fn unsent(
    client: &Client,
    carried: &Carried<'_>,
    piece: &[(i64, i64)],
) -> Result<u64, MarkError> {
    let (table, names) = (carried.table.name(), &carried.table.layout.names);
    let (seq, sent_at) = (names.sql("seq"), names.sql("sent_at"));
    let sql = format!(
        "SELECT count(*) FROM {table} o, unnest($1::int8[], $2::int8[]) AS piece (low, high) \
         WHERE o.{seq} BETWEEN piece.low AND piece.high AND o.{sent_at} IS NULL"
    );
    let (lows, highs): (Vec<i64>, Vec<i64>) = piece.iter().copied().unzip();
    let row = client.query_one(&sql, &[&lows, &highs]).await;
    let row = row.map_err(MarkError::sql("see what was marked"))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// Enters the numbers of the rows that carry `sent_at`; their commits lie below where the log stands then.
async fn sent_at_to_ledger(
    client: &Client,
    carried: &Carried<'_>,
    first: i64,
    last: i64,
) -> Result<u64, CarryError> {
    let mut rows = 0;
    let mut next = Some(first);
    while let Some(low) = next.filter(|low| *low <= last) {
        let end_of_segment = *numbers_of(segment_of(low)).end();
        let high = low.saturating_add(NUMBERS_MAX - 1).min(end_of_segment);
        rows += enter(client, carried, low, high).await?;
        next = following(client, carried.table, high).await?;
    }
    Ok(rows)
}

async fn enter(
    client: &Client,
    carried: &Carried<'_>,
    low: i64,
    high: i64,
) -> Result<u64, MarkError> {
    let layout = &carried.table.layout;
    let (table, id) = (carried.table.name(), layout.text_of(layout.id));
    let (seq, sent_at) = (layout.names.sql("seq"), layout.names.sql("sent_at"));
    let sql = format!(
        "WITH {LEASE}, sent AS (SELECT range_agg(int8range(o.{seq}, o.{seq}, '[]')) AS numbers, max(o.{seq})::int8 AS last_seq, \
             (array_agg({id} ORDER BY o.{seq} DESC))[1] AS last_id, count(*) AS rows \
             FROM {table} o WHERE o.{seq} BETWEEN $3::int8 AND $4::int8 AND o.{sent_at} IS NOT NULL), \
         entered AS (INSERT INTO outboxd.ledger (outbox, generation, segment, sent, high_lsn, last_seq, last_id, epoch) \
             SELECT $1, $5, $6, numbers, pg_current_wal_insert_lsn(), last_seq, last_id, $2 FROM sent, lease WHERE rows > 0) \
         SELECT (SELECT rows FROM sent), (SELECT count(*) FROM lease)"
    );
    let FencingToken { outbox, epoch } = carried.token;
    let segment = segment_of(low);
    let values: [&(dyn ToSql + Sync); 6] =
        [outbox, epoch, &low, &high, &carried.generation, &segment];
    counted(
        client,
        &sql,
        &values,
        "enter sent rows into the ledger",
        outbox,
    )
    .await
}

/// Runs a statement that says how many rows it dealt with and whether the lease, of the outbox in `$1`, is held.
async fn counted(
    client: &Client,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
    what: &'static str,
    outbox: &str,
) -> Result<u64, MarkError> {
    let row = client.query_one(sql, values).await;
    let row = row.map_err(MarkError::sql(what))?;
    if row.get::<_, i64>(1) == 0 {
        return Err(MarkError::NotLeader {
            outbox: outbox.to_owned(),
        });
    }
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// The lowest number above another: gaps cost nothing.
async fn following(client: &Client, table: &Table, number: i64) -> Result<Option<i64>, MarkError> {
    let (name, seq) = (table.name(), table.layout.names.sql("seq"));
    let sql = format!("SELECT min({seq})::int8 FROM {name} WHERE {seq} > $1::int8");
    let row = client.query_one(&sql, &[&number]).await;
    Ok(row
        .map_err(MarkError::sql("read the table's numbers"))?
        .get(0))
}

async fn has_writers(client: &Client, table: &Table) -> Result<bool, MarkError> {
    let oids: Vec<u32> = std::iter::once(table.oid)
        .chain(table.leaves.iter().map(|leaf| leaf.oid))
        .collect();
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE mode = 'RowExclusiveLock' \
               AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
               AND pid IS DISTINCT FROM pg_catalog.pg_backend_pid() AND relation = ANY ($1))";
    let row = client.query_one(sql, &[&oids]).await;
    Ok(row.map_err(MarkError::sql("see who writes"))?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_every_number_once_and_are_bounded() {
        let set: RangeSet = [1..=45_000, 50_000..=50_000, 60_000..=70_000]
            .into_iter()
            .collect();
        let pieces = pieces(&set);
        let mut seen = RangeSet::new();
        for piece in &pieces {
            let numbers: i64 = piece.iter().map(|(low, high)| high - low + 1).sum();
            assert!(numbers <= NUMBERS_MAX && piece.len() <= RANGES_MAX);
            for (low, high) in piece {
                seen.insert_range(*low..=*high);
            }
        }
        assert_eq!(seen.to_multirange_text(), set.to_multirange_text());
        let holes: RangeSet = (0..3_000).map(|number| number * 2..=number * 2).collect();
        assert_eq!(super::pieces(&holes).len(), 3);
    }
}
