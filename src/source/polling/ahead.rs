//! Unsent rows of some aggregates that stand in the table: they go out before newer rows that are kept elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::types::ToSql;

use super::gate::Gate;
use super::look_up::{RANGES, bounds};
use super::rows::RowReader;
use super::statement::{PLANNER, prepare, stream};
use super::turn::at;
use super::{PollError, Polling, UnsentMark};
use crate::postgres::catalog::{Selection, select_columns};
use crate::row::ranges::RangeSet;
use crate::row::{Layout, OutboxRow};
use crate::state::hold::RowsAhead;

/// Reads the rows with these numbers that are of an aggregate of `kept` and stand ahead of the newest of its rows there, and
/// waits until they are durable. What stands behind may have rows before it that are gone from the table, and that only the
/// stream brings.
///
/// `unsent` is the mark that tells unsent rows, where the numbers don't. At most one page, so that it fits in memory.
/// Errors: the connection's end, or `NoOrder` for a table without `seq`.
pub(crate) async fn read_ahead(
    polling: &Polling,
    unsent: Option<UnsentMark>,
    numbers: &RangeSet,
    kept: &[&OutboxRow],
) -> Result<RowsAhead, PollError> {
    let Polling {
        session,
        layout,
        outbox,
        batch_rows,
        value_bytes_max,
        ..
    } = polling;
    let settings = session.client.batch_execute(PLANNER).await;
    PollError::check(session, "set the planner up", settings).await?;
    let selection = select_columns(layout, *value_bytes_max);
    let statement = prepare(session, &query(layout, unsent, &selection)?).await?;
    let mut reader = RowReader::new(Arc::clone(layout), &selection, *value_bytes_max);
    let (low, high) = bounds(numbers);
    let Newest {
        types,
        ids,
        numbers,
    } = newest(layout, kept);
    let limit = reader.limit(*batch_rows);
    let limit_rows = i64::try_from(limit).unwrap_or(i64::MAX);
    let parameters: [&(dyn ToSql + Sync); 6] = [&low, &high, &types, &ids, &limit_rows, &numbers];
    let rows = stream(session, &statement, parameters).await?;
    let page = reader.read(session, rows, |_| true).await?;
    if let Some(stuck) = page.stuck {
        return Err(stuck);
    }
    if page.rows.is_empty() {
        return Ok(RowsAhead::default());
    }
    let gate = Gate::prepare(session, outbox).await?;
    let lsn = gate.pass(session).await?;
    Ok(RowsAhead {
        is_cut: !page.is_whole || page.rows.len() >= limit,
        rows: at(page.rows, lsn),
    })
}

fn query(
    layout: &Layout,
    unsent: Option<UnsentMark>,
    selection: &Selection,
) -> Result<String, PollError> {
    let name = |column: usize| escape_identifier(&layout.columns[column].name);
    let seq = name(layout.seq.ok_or(PollError::NoOrder)?);
    let aggregate = [layout.aggregate_type, layout.aggregate_id];
    // As the copies were read; NULL gives the empty text: rows of one aggregate too many change no order.
    let [kind, id] = aggregate.map(|column| format!("pg_catalog.format('%s', r.{})", name(column)));
    let unsent = match (unsent, layout.sent_at) {
        (Some(UnsentMark::SentAt), Some(column)) => format!("AND r.{} IS NULL", name(column)),
        _ => String::new(),
    };
    let Selection { columns, sizes, .. } = selection;
    Ok(format!(
        "SELECT {columns}, o.\"outboxd xmin\" FROM {RANGES} CROSS JOIN LATERAL (\
           SELECT r.*, r.xmin AS \"outboxd xmin\" FROM {} AS r WHERE r.{seq} BETWEEN hole.low AND hole.high \
             AND ({kind}, {id}) IN (SELECT * FROM ROWS FROM (\
               pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[])) AS kept(kind, id)) \
             AND r.{seq} < (($6::text)::jsonb OPERATOR(pg_catalog.->>) pg_catalog.concat({kind}, E'\\x1f', {id}))::int8 {unsent} \
           OFFSET 0) AS o {sizes} ORDER BY o.{seq} LIMIT $5::int8",
        layout.sql_name()
    ))
}

/// The aggregates of rows as two columns, and the highest number of each: JSON, looked up faster than rows are joined.
struct Newest<'a> {
    types: Vec<&'a str>,
    ids: Vec<&'a str>,
    numbers: String,
}

fn newest<'a>(layout: &Layout, rows: &[&'a OutboxRow]) -> Newest<'a> {
    let text = |row: &'a OutboxRow, column| {
        let bytes = row.field(column).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    };
    let mut newest = HashMap::<(&str, &str), i64>::new();
    for row in rows {
        let aggregate = (
            text(row, layout.aggregate_type),
            text(row, layout.aggregate_id),
        );
        if let Some(seq) = row.seq {
            let known = newest.entry(aggregate).or_insert(seq);
            *known = seq.max(*known);
        }
    }
    let numbers: serde_json::Map<_, _> = newest
        .iter()
        .map(|((kind, id), seq)| (format!("{kind}\u{1f}{id}"), (*seq).into()))
        .collect();
    let (types, ids) = newest.into_keys().unzip();
    Newest {
        types,
        ids,
        numbers: serde_json::Value::Object(numbers).to_string(),
    }
}
