//! A row that the server cannot send whole: read column by column, so that only the value at fault is missing.
//!
//! Reads only. What can't be sent is the row's own matter: it is handed out like any other, and its encoding refuses it.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use postgres_protocol::escape::escape_identifier;

use super::PollError;
use super::raw_column::RawColumn;
use crate::postgres::catalog::select_those;
use crate::postgres::{Class, SqlConnection};
use crate::row::{Column, Field, Layout, Lsn, Origin, OutboxRow};

/// Reads single rows of a table that has numbers.
pub(super) struct Apart {
    layout: Arc<Layout>,
    table: String,
    value_bytes_max: usize,
}

impl Apart {
    pub(super) fn new(layout: Arc<Layout>, table: String, value_bytes_max: usize) -> Self {
        Self {
            layout,
            table,
            value_bytes_max,
        }
    }

    fn seq(&self) -> Result<String, PollError> {
        let seq = self.layout.seq.ok_or(PollError::NoOrder)?;
        let name = &self.layout.columns[seq].name;
        Ok(format!("o.{}", escape_identifier(name)))
    }

    /// The number of the row that so many stand before, from a number upwards.
    pub(super) async fn number_at(
        &self,
        session: &SqlConnection,
        from: i64,
        place: usize,
    ) -> Result<Option<i64>, PollError> {
        let (seq, table) = (self.seq()?, &self.table);
        let sql = format!(
            "SELECT {seq}::int8 FROM {table} AS o WHERE {seq} >= ({from})::int8 ORDER BY {seq} LIMIT 1 OFFSET {place}"
        );
        let row = session.client.query_opt(&sql, &[]).await;
        let row = PollError::check(session, "look for a row", row).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// The row of a number, as far as it can be read.
    pub(super) async fn row(
        &self,
        session: &SqlConnection,
        number: i64,
    ) -> Result<Option<OutboxRow>, PollError> {
        let condition = format!("{} = ({number})::int8", self.seq()?);
        let (layout, table) = (&self.layout, &self.table);
        read(session, layout, table, &condition, self.value_bytes_max).await
    }
}

/// Whether a statement failed because of a value of a row.
pub(super) fn is_unsendable(error: &PollError) -> bool {
    matches!(error, PollError::Statement { source, .. } if source.class() == Class::Unsendable)
}

/// Reads the row of the table, called `o`, that a condition finds; `None` where there is none any more.
///
/// The row's `lsn` is not known yet.
pub(super) async fn read(
    session: &SqlConnection,
    layout: &Layout,
    table: &str,
    condition: &str,
    value_bytes_max: usize,
) -> Result<Option<OutboxRow>, PollError> {
    let from = format!("{table} AS o");
    let mut bytes = BytesMut::new();
    let mut fields = Vec::with_capacity(layout.columns.len());
    for column in &layout.columns {
        let sql = sql(column, &from, condition, value_bytes_max);
        let field = match field(session, &sql, value_bytes_max, &mut bytes).await {
            Ok(Some(field)) => field,
            Ok(None) => return Ok(None),
            Err(PollError::Statement { source, .. }) if source.class() == Class::Unsendable => {
                Field::unreadable(source.sqlstate().unwrap_or_default())
            }
            Err(error) => return Err(error),
        };
        fields.push(field);
    }
    let mut row = OutboxRow::new(layout, Lsn(0), bytes.freeze(), fields.into_boxed_slice());
    let version = format!("SELECT o.xmin::text::int8 FROM {from} WHERE {condition}");
    let version = session.client.query_opt(&version, &[]).await;
    let version = PollError::check(session, "read a row's version", version).await?;
    if let Some(version) = version {
        let xmin = u32::try_from(version.get::<_, i64>(0)).unwrap_or_default();
        row.origin = Origin::Table { xmin };
    }
    Ok(Some(row))
}

fn sql(column: &Column, from: &str, condition: &str, value_bytes_max: usize) -> String {
    let selection = select_those(std::slice::from_ref(column), value_bytes_max);
    let columns = &selection.columns;
    match selection.measured.is_empty() {
        true => format!("SELECT {columns} FROM {from} WHERE {condition}"),
        false => format!(
            "SELECT {columns} FROM {from} {} WHERE {condition}",
            selection.sizes
        ),
    }
}

/// Reads one column, `None` where the row is gone.
async fn field(
    session: &SqlConnection,
    sql: &str,
    value_bytes_max: usize,
    bytes: &mut BytesMut,
) -> Result<Option<Field>, PollError> {
    let row = session.client.query_opt(sql, &[]).await;
    let Some(row) = PollError::check(session, "read a value", row).await? else {
        return Ok(None);
    };
    let unexpected = |_| PollError::Unexpected("a row without its column");
    if row.len() > 1 {
        let size: Option<i64> = row.try_get(1).map_err(unexpected)?;
        let size = size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
        if size > value_bytes_max as u64 {
            return Ok(Some(Field::too_large(size)));
        }
    }
    let RawColumn(value) = row.try_get(0).map_err(unexpected)?;
    let Some(value) = value else {
        return Ok(Some(Field::null()));
    };
    let length = |bytes: usize| u32::try_from(bytes).expect("a message is shorter than 2 GiB");
    let field = Field {
        start: length(bytes.len()),
        len: length(value.len()),
    };
    bytes.put_slice(value);
    Ok(Some(field))
}
