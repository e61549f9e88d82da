//! Rows that were decoded and not handed over: those of the open transaction wait for its commit, for
//! it may change them.
//!
//! Pure. Bounded by one batch: a transaction that is larger is handed on as it comes, and what changes its rows then comes
//! too late.

use std::collections::HashMap;
use std::sync::Arc;

use super::pgoutput::{Described, Update, key_hash};
use super::{Batch, Boundary};
use crate::postgres::catalog::TableKind;
use crate::row::{Layout, Lsn, OutboxRow};

/// Size of a batch, unless one row is larger.
pub(super) const ROWS_MAX: usize = 2_048;
pub(super) const BYTES_MAX: usize = 1 << 20;

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeOutcome {
    /// The row is now what the change made of it.
    Applied,
    /// It is of a row that was committed before.
    OfAnother,
    /// Its row may be one that was handed on.
    TooLate,
}

/// The rows in hand, in their order.
pub(super) struct Gathered {
    layout: Arc<Layout>,
    batch: Batch,
    bytes: usize,
    /// Where the rows of the open transaction begin; `None` where none is open.
    open_at: Option<usize>,
    /// The lowest and the highest number of its rows that were handed on; without numbers the whole range.
    gone: Option<(i64, i64)>,
    /// The open transaction's rows by key, once one of them was changed.
    index: Option<Index>,
    /// The same by number, where rows may move between partitions.
    numbers: Option<HashMap<i64, usize>>,
}

struct Index {
    keys: Vec<usize>,
    places: HashMap<u64, usize>,
}

impl Gathered {
    pub(super) fn new(outbox: &Described) -> Self {
        Self {
            layout: Arc::clone(&outbox.layout),
            numbers: (outbox.kind == TableKind::Partitioned).then(HashMap::new),
            batch: Batch::default(),
            bytes: 0,
            open_at: None,
            gone: None,
            index: None,
        }
    }

    /// A transaction begins.
    pub(super) fn begin(&mut self) {
        self.open_at = Some(self.batch.rows.len());
        self.gone = None;
        self.forget();
    }

    /// Takes a row that was inserted.
    ///
    /// A row that an UPDATE moves to another partition comes as a second insert of its number: it stays in its place.
    pub(super) fn push(&mut self, row: OutboxRow) {
        self.bytes += row.size();
        if let Some(place) = self.moved_from(&row) {
            self.bytes -= self.batch.rows[place].size();
            self.batch.rows[place] = row;
            return;
        }
        if let Some(index) = &mut self.index {
            let place = self.batch.rows.len();
            index.places.insert(key_hash(&row, &index.keys), place);
        }
        self.batch.rows.push(row);
    }

    /// Where the open transaction's row stands that this one was before it moved.
    fn moved_from(&mut self, row: &OutboxRow) -> Option<usize> {
        let numbers = self.numbers.as_mut()?;
        let place = numbers.insert(row.seq?, self.batch.rows.len())?;
        numbers.insert(row.seq?, place);
        (self.batch.rows.get(place)?.id == row.id).then_some(place)
    }

    /// Puts a change into its row, if that one is of the open transaction and in hand.
    pub(super) fn update(&mut self, update: Update) -> ChangeOutcome {
        let Some(place) = self.place_of(&update) else {
            let number = update.seq().unwrap_or(0);
            let is_gone = |(low, high): (i64, i64)| low <= number && number <= high;
            return match self.gone.is_some_and(is_gone) {
                true => ChangeOutcome::TooLate,
                false => ChangeOutcome::OfAnother,
            };
        };
        let row = &mut self.batch.rows[place];
        self.bytes -= row.size();
        *row = update.applied_to(row, &self.layout);
        self.bytes += row.size();
        if let Some(index) = &mut self.index {
            index.places.insert(key_hash(row, &index.keys), place);
        }
        ChangeOutcome::Applied
    }

    fn place_of(&mut self, update: &Update) -> Option<usize> {
        let open_at = self.open_at?;
        let rows = &self.batch.rows;
        if open_at == rows.len() {
            return None;
        }
        let index = self
            .index
            .take()
            .filter(|index| index.keys == update.keys());
        let index = index.unwrap_or_else(|| Index {
            keys: update.keys().to_vec(),
            places: (open_at..rows.len())
                .map(|place| (key_hash(&rows[place], update.keys()), place))
                .collect(),
        });
        let place = index.places.get(&update.key_hash()).copied();
        self.index = Some(index);
        place.filter(|place| update.concerns(&rows[*place]))
    }

    /// Every transaction up to here is among the rows; none is open.
    pub(super) fn boundary(&mut self, lsn: Lsn) {
        self.batch.boundary = Some(Boundary {
            rows: self.batch.rows.len(),
            lsn,
        });
        self.open_at = None;
        self.gone = None;
        self.forget();
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.rows.len() >= ROWS_MAX || self.bytes >= BYTES_MAX
    }

    /// Whether there is something to hand over.
    pub(super) fn is_ready(&self) -> bool {
        self.settled() > 0 || self.batch.boundary.is_some() || self.is_full()
    }

    /// Whether rows wait to be handed over.
    pub(super) fn has_rows_ready(&self) -> bool {
        self.settled() > 0 || self.is_full()
    }

    /// How many rows nothing can change any more.
    fn settled(&self) -> usize {
        self.open_at.unwrap_or(self.batch.rows.len())
    }

    /// Takes what may be handed over; all of it where the open transaction fills the batch alone.
    pub(super) fn take(&mut self) -> Batch {
        let settled = self.settled();
        let has_nothing_else = settled == 0 && self.batch.boundary.is_none();
        if settled == self.batch.rows.len() || has_nothing_else {
            return self.take_all();
        }
        let rest = self.batch.rows.split_off(settled);
        let batch = std::mem::take(&mut self.batch);
        self.bytes = rest.iter().map(OutboxRow::size).sum();
        self.batch.rows = rest;
        self.open_at = Some(0);
        self.forget();
        let numbers = self.numbers.as_mut();
        let rest = self.batch.rows.iter().enumerate();
        let rest = rest.filter_map(|(place, row)| Some((row.seq?, place)));
        if let Some(numbers) = numbers {
            numbers.extend(rest);
        }
        batch
    }

    /// Takes everything, the rows of an open transaction, too.
    pub(super) fn take_all(&mut self) -> Batch {
        if let Some(open_at) = self.open_at {
            let open = &self.batch.rows[open_at..];
            for row in open {
                let (low, high) = match row.seq {
                    Some(seq) => (seq, seq),
                    None => (i64::MIN, i64::MAX),
                };
                let gone = self.gone.unwrap_or((low, high));
                self.gone = Some((gone.0.min(low), gone.1.max(high)));
            }
            self.open_at = Some(0);
        }
        self.bytes = 0;
        self.forget();
        std::mem::take(&mut self.batch)
    }

    /// Forgets where the open transaction's rows stand.
    fn forget(&mut self) {
        self.index = None;
        if let Some(numbers) = self.numbers.as_mut().filter(|numbers| !numbers.is_empty()) {
            numbers.clear();
        }
    }
}

#[cfg(test)]
mod tests;
