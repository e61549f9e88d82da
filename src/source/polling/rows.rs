//! Rows as they come from the table.
//!
//! Owns how a row's columns become one `OutboxRow`, and how many rows fit one statement. Never interprets a column.

use std::pin::pin;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use futures_util::TryStreamExt;
use tokio_postgres::{Row, RowStream};

use super::raw_column::RawColumn;
use super::{PollError, apart};
use crate::postgres::SqlConnection;
use crate::postgres::catalog::Selection;
use crate::row::{Field, Layout, Lsn, Origin, OutboxRow};

/// Bytes of rows that one statement's result may hold in memory.
pub(super) const PAGE_BYTES: usize = 4 << 20;
/// Bytes that rows share; a row that stays in memory keeps so much alive.
const CHUNK_BYTES: usize = 64 << 10;
/// A guess at the size of a row before the first was seen.
const ROW_BYTES: usize = 1 << 10;

/// Rows of one statement.
pub(super) struct Page {
    pub(super) rows: Vec<OutboxRow>,
    /// So many were read; some of them may not have been wanted.
    pub(super) seen: usize,
    /// The statement's result was read to its end.
    pub(super) is_whole: bool,
    /// Why the row behind the last one can't be read with the others: a value of it can't be sent.
    pub(super) stuck: Option<PollError>,
}

/// Builds rows and learns their size.
pub(super) struct RowReader {
    layout: Arc<Layout>,
    /// The columns whose sizes follow the last column.
    measured: Vec<usize>,
    value_bytes_max: usize,
    chunk: BytesMut,
    row_bytes: usize,
}

/// Which version was read, where the statement asked for its `xmin` behind all else.
fn version(row: &Row, place: usize) -> Origin {
    if row.len() <= place {
        return Origin::Unknown;
    }
    match row.try_get::<_, RawColumn<'_>>(place) {
        Ok(RawColumn(Some(&[a, b, c, d]))) => Origin::Table {
            xmin: u32::from_be_bytes([a, b, c, d]),
        },
        _ => Origin::Unknown,
    }
}

impl RowReader {
    /// Reads the rows of `selection`, which leaves out values above `value_bytes_max`.
    pub(super) fn new(layout: Arc<Layout>, selection: &Selection, value_bytes_max: usize) -> Self {
        Self {
            layout,
            measured: selection.measured.clone(),
            value_bytes_max,
            chunk: BytesMut::new(),
            row_bytes: ROW_BYTES,
        }
    }

    /// How many rows one statement may ask for: `rows_max`, or fewer where rows are large.
    pub(super) fn limit(&self, rows_max: usize) -> usize {
        (PAGE_BYTES / self.row_bytes.max(1)).clamp(1, rows_max.max(1))
    }

    /// Reads the rows that are wanted until they take [`PAGE_BYTES`], one at least; what is left of the result is discarded
    /// by the connection.
    ///
    /// A row that can't be sent ends the page, too: those before it came, for results are sent in their order.
    /// The rows' `lsn` is not known yet.
    pub(super) async fn read(
        &mut self,
        session: &SqlConnection,
        stream: RowStream,
        is_wanted: impl Fn(&OutboxRow) -> bool,
    ) -> Result<Page, PollError> {
        let mut stream = pin!(stream);
        let (mut rows, mut seen, mut bytes) = (Vec::new(), 0, 0);
        loop {
            let row = stream.try_next().await;
            let row = match PollError::check(session, "read rows", row).await {
                Ok(Some(row)) => row,
                Ok(None) => {
                    self.learn(rows.len(), bytes);
                    return Ok(Page {
                        rows,
                        seen,
                        is_whole: true,
                        stuck: None,
                    });
                }
                Err(error) if apart::is_unsendable(&error) => {
                    return Ok(Page {
                        rows,
                        seen,
                        is_whole: false,
                        stuck: Some(error),
                    });
                }
                Err(error) => return Err(error),
            };
            seen += 1;
            let built = self.build(&row)?;
            if !is_wanted(&built) {
                continue;
            }
            rows.push(built);
            bytes += row.raw_size_bytes();
            if bytes >= PAGE_BYTES {
                self.learn(rows.len(), bytes);
                return Ok(Page {
                    rows,
                    seen,
                    is_whole: false,
                    stuck: None,
                });
            }
        }
    }

    fn build(&mut self, row: &Row) -> Result<OutboxRow, PollError> {
        let size = row.raw_size_bytes();
        if self.chunk.capacity() < size {
            self.chunk = BytesMut::with_capacity(size.max(CHUNK_BYTES));
        }
        let too_few = |_| PollError::Unexpected("a row with fewer columns than the table");
        let columns = self.layout.columns.len();
        let mut fields = Vec::with_capacity(columns);
        for column in 0..columns {
            let raw: RawColumn<'_> = row.try_get(column).map_err(too_few)?;
            fields.push(self.append(raw.0));
        }
        for (place, column) in self.measured.iter().enumerate() {
            let size: Option<i64> = row.try_get(columns + place).map_err(too_few)?;
            let bytes = size
                .and_then(|bytes| u64::try_from(bytes).ok())
                .unwrap_or(0);
            if bytes > self.value_bytes_max as u64 {
                fields[*column] = Field::too_large(bytes);
            }
        }
        let bytes = self.chunk.split().freeze();
        let fields = fields.into_boxed_slice();
        let mut built = OutboxRow::new(&self.layout, Lsn(0), bytes, fields);
        built.origin = version(row, columns + self.measured.len());
        Ok(built)
    }

    fn append(&mut self, value: Option<&[u8]>) -> Field {
        let Some(value) = value else {
            return Field::null();
        };
        let length = |bytes: usize| u32::try_from(bytes).expect("a message is shorter than 2 GiB");
        let field = Field {
            start: length(self.chunk.len()),
            len: length(value.len()),
        };
        self.chunk.put_slice(value);
        field
    }

    /// Moves the average a fourth of the way to what a page showed.
    fn learn(&mut self, rows: usize, bytes: usize) {
        if let Some(seen) = bytes.checked_div(rows) {
            self.row_bytes = (3 * self.row_bytes + seen).div_ceil(4);
        }
    }
}
