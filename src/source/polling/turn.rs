//! One turn of polling by `seq`: new rows, locks, look-ups, the durability gate, and the merge of what was found.
//!
//! Owns the statements on the table. Each is a statement of its own in READ COMMITTED, in the order that
//! [`Holes`](crate::source::holes::Holes) asks for.

use std::sync::Arc;

use postgres_protocol::escape::escape_identifier;
use tokio::sync::mpsc;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::apart::{self, Apart};
use super::gate::Gate;
use super::locks::Locks;
use super::look_up::{LookUp, RANGES, bounds};
use super::raw_column::RawColumn;
use super::rows::{Page, RowReader};
use super::shape::Shape;
use super::statement::{PLANNER, prepare, stream};
use super::writers::Writers;
use super::{Ended, Known, Next, PollError, Polling, TopRow, send};
use crate::postgres::SqlConnection;
use crate::postgres::catalog::{Selection, select_column, select_columns};
use crate::row::ranges::RangeSet;
use crate::row::{Layout, Lsn, OutboxRow, RowId};
use crate::source::holes::{Arrivals, Holes, Plan, RollbackProof};
use crate::source::{Batch, Boundary};

/// The turns over one connection, and what they have learned.
pub(super) struct Turns {
    session: SqlConnection,
    batch_rows: usize,
    statements: Statements,
    rows: RowReader,
    shape: Shape,
    locks: Locks,
    gate: Gate,
    holes: Holes,
    look_up: LookUp,
    apart: Apart,
    writers: Writers,
    first: i64,
    top: Option<i64>,
    top_id: Option<RowId>,
    /// The turn before found no new row.
    is_quiet: bool,
    /// Nothing was said of having caught up since rows were left in the table.
    is_behind: bool,
}

struct Statements {
    /// Numbers and ids from a number upwards, as many as tell whether a row is new.
    probe: Statement,
    /// Rows from a number upwards.
    new: Statement,
    /// The rows of some ranges.
    contents: Statement,
}

impl Turns {
    pub(super) async fn prepare(polling: Polling, known: Known) -> Result<Self, PollError> {
        let Polling {
            session,
            layout,
            outbox,
            table,
            oid,
            shape,
            batch_rows,
            value_bytes_max,
            caught_up,
            ..
        } = polling;
        let settings = session.client.batch_execute(PLANNER).await;
        PollError::check(&session, "set the planner up", settings).await?;
        let mut holes = Holes::new(RollbackProof::OnLocks);
        if let Some(top) = known.top {
            holes.note(known.settled.gaps(known.first..=top).collect());
        }
        let selection = select_columns(&layout, value_bytes_max);
        Ok(Self {
            writers: Writers::prepare(&session, &table, caught_up).await?,
            statements: Statements::prepare(&session, &layout, &table, &selection).await?,
            rows: RowReader::new(Arc::clone(&layout), &selection, value_bytes_max),
            shape: Shape::prepare(&session, oid, shape).await?,
            locks: Locks::prepare(&session, &table).await?,
            gate: Gate::prepare(&session, &outbox).await?,
            look_up: LookUp::prepare(&session, &layout, &table).await?,
            apart: Apart::new(layout, table, value_bytes_max),
            session,
            batch_rows,
            holes,
            first: known.first,
            top: known.top,
            top_id: known.top_id,
            is_quiet: false,
            is_behind: true,
        })
    }

    /// Takes one turn and hands over what it found.
    pub(super) async fn turn(&mut self, batches: &mpsc::Sender<Batch>) -> Result<Next, Ended> {
        let position = self.writers.look(&self.session).await?;
        let (new, next) = self.read_new().await?;
        // A full turn left visible rows in the table.
        let passed = position.filter(|_| next == Next::AfterInterval);
        let is_behind = next == Next::AtOnce || !self.writers.have_ended();
        let arrivals = if new.is_empty() {
            Arrivals::Nothing
        } else {
            Arrivals::Rows
        };
        self.is_quiet = new.is_empty();
        self.note(&new);
        let (found, rolled_back) = self.fill_holes(arrivals).await?;
        let has_caught_up = !is_behind && self.is_behind;
        self.is_behind = is_behind;
        let is_idle = new.is_empty() && found.is_empty() && rolled_back.is_empty();
        if is_idle && !has_caught_up && passed.is_none() {
            return Ok(next);
        }
        let mut lsn = Lsn(0);
        if !new.is_empty() || !found.is_empty() {
            lsn = self.gate.pass(&self.session).await?;
        }
        let new = self.hand_over_found(new, found, lsn, batches).await?;
        let rest = Batch {
            boundary: passed.map(|lsn| Boundary {
                rows: new.len(),
                lsn,
            }),
            rows: at(new, lsn),
            rolled_back,
            caught_up: !is_behind,
        };
        send(batches, rest).await?;
        if passed.is_some() {
            self.writers.passed();
        }
        Ok(next)
    }

    /// Step 1: the rows above the highest seen, which is read again to see that it is still the same.
    async fn read_new(&mut self) -> Result<(Vec<OutboxRow>, Next), PollError> {
        if let Some(top) = self.top.filter(|_| self.is_quiet)
            && self.is_top_the_last(top).await?
        {
            return Ok((Vec::new(), Next::AfterInterval));
        }
        let has_top = self.top.is_some();
        let from = self.top.unwrap_or(self.first);
        let limit = self.rows.limit(self.batch_rows) + usize::from(has_top);
        let mut page = self.read_from(from, limit).await?;
        let is_top = |row: &OutboxRow| has_top && row.seq == self.top;
        if page.stuck.is_some() && page.rows.len() == 1 && is_top(&page.rows[0]) {
            // The row that can't be sent is the highest known one: what stands above it is read without it.
            let above = self.read_from(from.saturating_add(1), limit).await?;
            page.is_whole = above.is_whole;
            page.rows.extend(above.rows);
        }
        if page.rows.len() > usize::from(has_top) {
            self.shape.check(&self.session).await?;
        }
        let is_full = !page.is_whole || page.rows.len() >= limit;
        let mut rows = page.rows;
        if has_top {
            let is_standing = rows.first().is_some_and(|row| row.seq == self.top);
            self.verify_top(from, rows.first().filter(|_| is_standing))?;
            rows.drain(..usize::from(is_standing));
        }
        let next = if is_full {
            Next::AtOnce
        } else {
            Next::AfterInterval
        };
        Ok((rows, next))
    }

    /// Reads a page of rows from a number upwards; one that can't be sent is its last.
    async fn read_from(&mut self, from: i64, limit: usize) -> Result<Page, PollError> {
        let limit_rows = i64::try_from(limit).unwrap_or(i64::MAX);
        let params: [&(dyn ToSql + Sync); 2] = [&from, &limit_rows];
        let stream = stream(&self.session, &self.statements.new, params).await?;
        let mut page = self.rows.read(&self.session, stream, |_| true).await?;
        if page.stuck.is_some() {
            let place = page.rows.len();
            let next = self.apart.number_at(&self.session, from, place).await?;
            page.rows.extend(match next {
                Some(number) => self.apart.row(&self.session, number).await?,
                None => None,
            });
        }
        Ok(page)
    }

    /// Whether the highest row is the one that is known: then nothing is new, and no payload was read to see that.
    async fn is_top_the_last(&self, top: i64) -> Result<bool, PollError> {
        let client = &self.session.client;
        let rows = client.query(&self.statements.probe, &[&top]).await;
        let rows = match PollError::check(&self.session, "look for new rows", rows).await {
            // An id that can't be sent says nothing.
            Err(error) if apart::is_unsendable(&error) => return Ok(false),
            rows => rows?,
        };
        let [row] = rows.as_slice() else {
            return Ok(false);
        };
        let (seq, RawColumn(id)): (i64, _) = (row.get(0), row.get(1));
        let id = id.map(RowId::from_text);
        Ok(seq == top && id.is_some() && id == self.top_id)
    }

    /// Compares the row that stands at the highest number with the one that stood there, if that is known.
    fn verify_top(&mut self, seq: i64, row: Option<&OutboxRow>) -> Result<(), PollError> {
        let found = match (row, &self.top_id) {
            (Some(row), None) => {
                self.top_id.clone_from(&row.id);
                return Ok(());
            }
            (None, None) => return Ok(()),
            (Some(row), known) if row.id == *known => return Ok(()),
            (Some(_), Some(_)) => TopRow::Other,
            (None, Some(_)) => TopRow::Gone,
        };
        Err(PollError::TopRow { seq, found })
    }

    /// Takes the numbers that the new rows leave out as holes.
    fn note(&mut self, new: &[OutboxRow]) {
        let Some(OutboxRow {
            seq: Some(last),
            id,
            ..
        }) = new.last()
        else {
            return;
        };
        let numbers: RangeSet = new.iter().filter_map(|row| row.seq).collect();
        let from = self.top.map_or(self.first, |top| top.saturating_add(1));
        self.holes.note(numbers.gaps(from..=*last).collect());
        self.top = Some(*last);
        self.top_id.clone_from(id);
    }

    /// Steps 2 and 3: which holes are rows by now, and which will never be.
    async fn fill_holes(&mut self, arrivals: Arrivals) -> Result<(RangeSet, RangeSet), PollError> {
        if self.holes.is_empty() {
            return Ok(Default::default());
        }
        let mut plan = self.plan(arrivals).await?;
        let (mut found, mut seen) = self.look_up.ask(&self.session, &plan.look_up).await?;
        while !found.is_empty() {
            let Some(wider) = self.holes.widen(&plan, &seen) else {
                break;
            };
            plan = wider;
            (found, seen) = self.look_up.ask(&self.session, &plan.look_up).await?;
        }
        let rolled_back = self.holes.answer(&plan, &found);
        Ok((found, rolled_back))
    }

    /// Step 2, unless the locks were read too recently and looking every hole up costs less than reading them.
    async fn plan(&mut self, arrivals: Arrivals) -> Result<Plan, PollError> {
        let every_hole = self.look_up.cost_of(self.holes.len());
        if !self.locks.is_due() && every_hole <= self.locks.cost() {
            return Ok(self.holes.plan_without_locks());
        }
        let reading = self.locks.read(&self.session).await?;
        let plan = self.holes.plan(&reading, arrivals, Lsn(0));
        self.locks.warn_of_forgotten(&self.holes);
        Ok(plan)
    }

    /// Step 4: hands over what was found, page by page, each with the new rows that belong before its end.
    ///
    /// Returns the new rows that are left.
    async fn hand_over_found(
        &mut self,
        new: Vec<OutboxRow>,
        mut found: RangeSet,
        lsn: Lsn,
        batches: &mpsc::Sender<Batch>,
    ) -> Result<Vec<OutboxRow>, Ended> {
        let mut new = new.into_iter().peekable();
        while !found.is_empty() {
            let numbers = lowest(&found, self.rows.limit(self.batch_rows));
            let page = self.read_contents(&numbers).await?;
            let read_to = match page.rows.last() {
                Some(row) if !page.is_whole => row.seq,
                _ => numbers.last(),
            };
            let Some(last) = read_to else {
                return Err(PollError::Unexpected("a row without `seq`").into());
            };
            found.remove_range(i64::MIN..=last);
            let mut rows = page.rows;
            while let Some(row) = new.next_if(|row| row.seq <= Some(last)) {
                rows.push(row);
            }
            rows.sort_unstable_by_key(|row| row.seq);
            let batch = Batch {
                rows: at(rows, lsn),
                ..Batch::default()
            };
            send(batches, batch).await?;
        }
        Ok(new.collect())
    }

    /// Reads the rows of some numbers, in their order; one that can't be sent is the last of its page.
    async fn read_contents(&mut self, numbers: &RangeSet) -> Result<Page, PollError> {
        let (low, high) = bounds(numbers);
        loop {
            let params: [&(dyn ToSql + Sync); 2] = [&low, &high];
            let stream = stream(&self.session, &self.statements.contents, params).await?;
            let mut page = self.rows.read(&self.session, stream, |_| true).await?;
            self.shape.check(&self.session).await?;
            if page.stuck.is_none() {
                return Ok(page);
            }
            let mut rest = numbers.clone();
            if let Some(last) = page.rows.last().and_then(|row| row.seq) {
                rest.remove_range(i64::MIN..=last);
            }
            let (found, _) = self.look_up.ask(&self.session, &rest).await?;
            if let Some(number) = found.first()
                && let Some(row) = self.apart.row(&self.session, number).await?
            {
                page.rows.push(row);
                return Ok(page);
            }
            // It was deleted meanwhile: the others are read again.
        }
    }
}

impl Statements {
    async fn prepare(
        session: &SqlConnection,
        layout: &Layout,
        table: &str,
        selection: &Selection,
    ) -> Result<Self, PollError> {
        let seq = layout.seq.and_then(|column| layout.columns.get(column));
        let seq = escape_identifier(&seq.ok_or(PollError::NoOrder)?.name);
        let id = select_column(&layout.columns[layout.id]);
        let Selection { columns, sizes, .. } = selection;
        // `o.` throughout: a bare name in ORDER BY means the selected text.
        let probe = format!(
            "SELECT o.{seq}::int8, {id} FROM {table} AS o WHERE o.{seq} >= $1::int8 \
             ORDER BY o.{seq} LIMIT 2"
        );
        let new = format!(
            "SELECT {columns} FROM {table} AS o {sizes} WHERE o.{seq} >= $1::int8 \
             ORDER BY o.{seq} LIMIT $2::int8"
        );
        let contents = format!(
            "SELECT filled.* FROM {RANGES} CROSS JOIN LATERAL \
             (SELECT {columns}, o.{seq}::int8 AS outboxd_seq FROM {table} AS o {sizes} \
             WHERE o.{seq} BETWEEN hole.low AND hole.high OFFSET 0) AS filled \
             ORDER BY filled.outboxd_seq"
        );
        Ok(Self {
            probe: prepare(session, &probe).await?,
            new: prepare(session, &new).await?,
            contents: prepare(session, &contents).await?,
        })
    }
}

/// Gives rows the position that bounds their commits.
pub(super) fn at(mut rows: Vec<OutboxRow>, lsn: Lsn) -> Vec<OutboxRow> {
    for row in &mut rows {
        row.lsn = lsn;
    }
    rows
}

/// The lowest `count` numbers of a set.
fn lowest(numbers: &RangeSet, count: usize) -> RangeSet {
    let mut left = i64::try_from(count).unwrap_or(i64::MAX);
    let mut lowest = RangeSet::new();
    for range in numbers.ranges() {
        let (low, high) = range.into_inner();
        let end = high.min(low.saturating_add(left - 1));
        lowest.insert_range(low..=end);
        left -= end - low + 1;
        if left == 0 {
            break;
        }
    }
    lowest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_numbers_come_from_as_many_ranges_as_they_need() {
        let numbers: RangeSet = [1..=3, 7..=9, 20..=30].into_iter().collect();
        let texts = [1, 3, 5, 100].map(|count| lowest(&numbers, count).to_multirange_text());
        assert_eq!(
            texts,
            [
                "{[1,2)}",
                "{[1,4)}",
                "{[1,4),[7,9)}",
                "{[1,4),[7,10),[20,31)}"
            ]
        );
    }
}
