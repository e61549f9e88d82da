//! The rows that `source.start = "now"` skipped, as SQL tells them. Pure.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::mark::ledger::number_sql;
use crate::row::Layout;
use crate::row::ranges::RangeSet;

/// How skipped rows are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkippedBy {
    /// By numbers that no other row will ever have: few ranges.
    Numbers,
    /// By their ids, in a table of their own.
    Ids,
}

/// Which rows of a table were skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// True of a row of the table `o` that was skipped.
    pub condition: String,
}

impl Skipped {
    pub(super) fn by_ids(layout: &Layout) -> Self {
        // Asked for each row by the index, whatever the planner knows of a table that was filled a moment ago.
        let condition = format!(
            "(SELECT true FROM outboxd.skipped AS s WHERE s.outbox = {} AND s.id = {} LIMIT 1) IS NOT NULL",
            escape_literal(&layout.outbox()),
            layout.text_of(layout.id)
        );
        Self { condition }
    }

    /// `None` where there are no such numbers, or no column of them.
    pub(super) fn by_numbers(layout: &Layout, numbers: &RangeSet) -> Option<Self> {
        let seq = layout.seq.filter(|_| !numbers.is_empty())?;
        let seq = escape_identifier(&layout.columns[seq].name);
        let numbers = escape_literal(&numbers.to_multirange_text());
        let condition = format!("coalesce({numbers}::int8multirange @> o.{seq}::int8, false)");
        Some(Self { condition })
    }
}

/// The statement that decides to skip what it sees; `$1` is the outbox.
pub(super) fn decision(layout: &Layout, by: SkippedBy) -> String {
    let table = layout.sql_name();
    let (skipped, ids) = match (by, layout.seq) {
        (SkippedBy::Numbers, Some(seq)) => {
            let seq = escape_identifier(&layout.columns[seq].name);
            let numbers = format!(
                "(SELECT coalesce(range_agg({}), '{{}}') FROM {table} AS o)",
                number_sql(&format!("o.{seq}"))
            );
            (numbers, String::new())
        }
        (SkippedBy::Numbers | SkippedBy::Ids, _) => {
            let id = escape_identifier(&layout.columns[layout.id].name);
            let ids = format!(
                "WITH skipped AS (INSERT INTO outboxd.skipped (outbox, id) \
                 SELECT $1, {} FROM {table} AS o WHERE o.{id} IS NOT NULL ON CONFLICT DO NOTHING) ",
                layout.text_of(layout.id)
            );
            ("'{}'::int8multirange".to_owned(), ids)
        }
    };
    format!(
        "{ids}INSERT INTO outboxd.outbox (outbox, start, skipped, start_lsn) \
         SELECT $1, 'now', {skipped}, pg_catalog.pg_current_wal_insert_lsn() \
         ON CONFLICT (outbox) DO UPDATE SET start = 'now', skipped = excluded.skipped, start_lsn = excluded.start_lsn"
    )
}
