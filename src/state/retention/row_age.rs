//! Whether the age of a table's sent rows can be known, and how. Pure.

use crate::config::Mark;
use crate::postgres::catalog::published::{self, Change};
use crate::postgres::catalog::{SeqIndex, Table};
use crate::postgres::compatibility::Incompatibility;

/// The column that tells how old a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// When it was inserted; the ledger says whether it was sent.
    Created,
    /// When it was sent.
    Sent,
}

impl Age {
    /// Our name of the column.
    pub(crate) fn column(self) -> &'static str {
        match self {
            Self::Created => "created_at",
            Self::Sent => "sent_at",
        }
    }
}

/// Says how the age of sent rows is known.
///
/// Errors: why it can't be, why looking for old rows would read the whole table, or why PostgreSQL would not remove them.
pub fn age(mark: Mark, table: &Table) -> Result<Age, Incompatibility> {
    let (name, names) = (table.name(), &table.layout.names);
    let refuse = |text: &str, remedy: String| {
        Err(Incompatibility {
            text: text.to_owned(),
            remedy,
        })
    };
    if !table
        .seq
        .as_ref()
        .is_some_and(|seq| seq.index != SeqIndex::None)
    {
        return refuse(
            "rows are removed by ranges of `seq`, and the table has no such column with an index",
            format!(
                "set source.retention = \"none\", or CREATE UNIQUE INDEX CONCURRENTLY ON {name} ({});",
                names.sql("seq")
            ),
        );
    }
    let purpose = "to remove rows that were sent";
    if let Some(unpublishable) = published::refusal(&table.unpublishable, Change::Delete, purpose) {
        return Err(unpublishable);
    }
    if mark == Mark::SentAt {
        return Ok(Age::Sent);
    }
    let created = table.layout.ours(Age::Created.column());
    match created.map(|column| table.layout.columns[column].type_name.as_str()) {
        Some(kind) if kind.ends_with(" with time zone") => Ok(Age::Created),
        Some(_) => refuse(
            "`created_at` is no moment: only `timestamptz` says the same in every time zone",
            format!(
                "ALTER TABLE {name} ALTER COLUMN {} TYPE timestamptz; -- rewrites the table",
                names.sql("created_at")
            ),
        ),
        None => refuse(
            "no column `created_at` says how old a row is, and the ledger does not know it of single rows",
            format!(
                "ALTER TABLE {name} ADD COLUMN \"created_at\" timestamptz NOT NULL DEFAULT clock_timestamp(); -- rewrites the table"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::tests::{five_columns, trusted};
    use crate::row::Column;

    #[test]
    fn the_age_of_a_row_is_known_by_sent_at_or_else_by_created_at() {
        let mut table = trusted();
        assert_eq!(age(Mark::SentAt, &table), Ok(Age::Sent));
        let refused = age(Mark::Ledger, &table).unwrap_err();
        assert!(
            refused.text.contains("no column `created_at`"),
            "{}",
            refused.text
        );
        let column = Column::new("created_at", "timestamp(3) with time zone");
        table.layout.columns.push(column);
        assert_eq!(age(Mark::Ledger, &table), Ok(Age::Created));
    }

    #[test]
    fn a_time_without_a_zone_is_no_moment() {
        let mut table = trusted();
        let column = Column::new("created_at", "timestamp without time zone");
        table.layout.columns.push(column);
        assert!(age(Mark::Ledger, &table).is_err());
    }

    #[test]
    fn a_table_that_is_not_found_by_number_keeps_its_rows() {
        assert!(age(Mark::SentAt, &five_columns()).is_err());
        let mut table = trusted();
        table.seq.as_mut().unwrap().index = SeqIndex::None;
        assert!(age(Mark::SentAt, &table).is_err());
    }
}
