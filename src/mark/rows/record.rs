//! `outboxd.marked`: which rows a relay marked beside a stream, until the position that may be confirmed stands behind them.
//!
//! A row whose mark is owed (it was acknowledged, and its commit is not visible yet) is recorded as well: the next session
//! marks it, and sends it no second time.

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::sql::Sql;
use crate::core::Delivered;
use crate::mark::evidence::Record;
use crate::mark::ledger::LEASE;
use crate::mark::{FencingToken, MarkError};
use crate::row::ranges::RangeSet;
use crate::row::{Lsn, Origin, RowId};

/// Rows that were acknowledged and not marked, as far as is recorded.
pub type Owed = Vec<Delivered>;

/// Reads what is recorded of one outbox.
///
/// Cancel-safe: yes.
pub async fn load(client: &Client, outbox: &str) -> Result<(Record, Owed), MarkError> {
    let sql = "SELECT numbers::text, coalesce(ids, '{}'), coalesce(seqs, '{}'), high_lsn::text, resolved::text, \
               coalesce(owed_ids, '{}'), coalesce(owed_seqs, '{}'), coalesce(owed_xids, '{}') \
               FROM outboxd.marked WHERE outbox = $1 ORDER BY high_lsn DESC, id DESC";
    let rows = client
        .query(sql, &[&outbox])
        .await
        .map_err(MarkError::sql("read which rows are marked"))?;
    let (mut record, mut owed) = (Record::default(), Owed::new());
    let lsn = |text: &str| -> Lsn { text.parse().expect("PostgreSQL prints a pg_lsn as an LSN") };
    for row in &rows {
        let high_lsn = lsn(row.get(3));
        record.resolve(lsn(row.get(4)));
        if let Some(numbers) = row.get::<_, Option<&str>>(0) {
            let unreadable = |source| MarkError::Unreadable {
                outbox: outbox.to_owned(),
                source,
            };
            let numbers = RangeSet::parse_multirange(numbers).map_err(unreadable)?;
            record.add_numbers(&numbers, high_lsn);
        }
        let (ids, seqs): (Vec<&str>, Vec<Option<i64>>) = (row.get(1), row.get(2));
        for (id, seq) in ids.iter().zip(seqs) {
            record.add_id(RowId::from_text(id.as_bytes()), seq, high_lsn);
        }
        let (ids, seqs): (Vec<&str>, Vec<Option<i64>>) = (row.get(5), row.get(6));
        let xids: Vec<Option<i64>> = row.get(7);
        for ((id, seq), xid) in ids.iter().zip(seqs).zip(xids) {
            let xid = xid.and_then(|xid| u32::try_from(xid).ok());
            owed.push(Delivered {
                ticket: crate::core::Ticket::MAX,
                seq,
                id: RowId::from_text(id.as_bytes()),
                lsn: high_lsn,
                origin: xid.map_or(Origin::Unknown, |xid| Origin::Stream { xid }),
            });
        }
    }
    Ok((record, owed))
}

/// Records rows that no mark reached: those that are gone, and those whose mark is owed.
pub(super) async fn note(
    client: &Client,
    token: &FencingToken,
    sql: &Sql,
    (gone, owed): (&[Delivered], &[Delivered]),
    resolved: Lsn,
) -> Result<(), MarkError> {
    let all = || gone.iter().chain(owed);
    let Some(high_lsn) = all().map(|row| row.lsn).max() else {
        return Ok(());
    };
    let statement = format!(
        "WITH {LEASE} INSERT INTO outboxd.marked (outbox, epoch, numbers, ids, seqs, owed_ids, owed_seqs, owed_xids, \
           high_lsn, resolved) \
         SELECT $1, $2, ($3::text)::int8multirange, $4, $5, $6, $7, $8, ($9::text)::pg_lsn, ($10::text)::pg_lsn FROM lease"
    );
    let has_numbers = sql.has_unique_numbers();
    let numbers: RangeSet = all().filter_map(|row| row.seq).collect();
    let numbers = has_numbers.then(|| numbers.to_multirange_text());
    let named = || all().filter(|_| !has_numbers);
    let ids: Vec<_> = named().map(|row| row.id.to_string()).collect();
    let seqs: Vec<_> = named().map(|row| row.seq).collect();
    let owed_ids: Option<Vec<_>> =
        (!owed.is_empty()).then(|| owed.iter().map(|row| row.id.to_string()).collect());
    let owed_seqs: Vec<_> = owed.iter().map(|row| row.seq).collect();
    let owed_xids: Vec<_> = owed.iter().map(xid).collect();
    let (high_lsn, resolved) = (high_lsn.to_string(), resolved.to_string());
    let values: [&(dyn ToSql + Sync); 10] = [
        &token.outbox,
        &token.epoch,
        &numbers,
        &ids,
        &seqs,
        &owed_ids,
        &owed_seqs,
        &owed_xids,
        &high_lsn,
        &resolved,
    ];
    let noted = client.execute(&statement, &values).await;
    match noted.map_err(MarkError::sql("record which rows are marked"))? {
        0 => Err(MarkError::NotLeader {
            outbox: token.outbox.clone(),
        }),
        _ => Ok(()),
    }
}

/// Records that no mark is owed any more.
pub(super) async fn pay(client: &Client, token: &FencingToken) -> Result<(), MarkError> {
    let statement = format!(
        "WITH {LEASE} UPDATE outboxd.marked m SET owed_ids = NULL, owed_seqs = NULL, owed_xids = NULL FROM lease \
         WHERE m.outbox = $1 AND m.owed_ids IS NOT NULL"
    );
    let values: [&(dyn ToSql + Sync); 2] = [&token.outbox, &token.epoch];
    let paid = client.execute(&statement, &values).await;
    paid.map(drop)
        .map_err(MarkError::sql("record which rows are marked"))
}

fn xid(row: &Delivered) -> Option<i64> {
    match row.origin {
        Origin::Stream { xid } => Some(xid.into()),
        Origin::Unknown | Origin::Table { .. } | Origin::Before { .. } => None,
    }
}
