//! Cases that wait for a mend: which, and for the row of the list of findings that is to mend them.
//!
//! `make shapes` says so of each; one that holds although it stands here is told, so that the list ends empty.

use super::case::Case;
use super::shape::Pair;

/// Parts of the scenario that are left out for now, whatever the shape; `ALL=1` plays them all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A row is changed in its own transaction.
    ChangeWithin,
    /// The relay goes on with another mark.
    OtherMark,
}

/// The row that a part of the scenario waits for in this mode with this mark.
pub fn part_waits(part: Part, pair: Pair) -> Option<&'static str> {
    let row = match part {
        Part::ChangeWithin if !pair.is_polled() => "A18",
        Part::OtherMark => "A25",
        _ => return None,
    };
    match std::env::var("ALL") {
        Ok(all) if !all.is_empty() => None,
        _ => Some(row),
    }
}

/// A beginning of the shape's name, a mode and a mark, each empty for all; and what is waited for.
pub struct Waits {
    shape: &'static str,
    mode: &'static str,
    mark: &'static str,
    row: &'static str,
}

pub const KNOWN: &[Waits] = &[
    waits_for("A2", "aggregatetype char(10)", "", ""),
    waits_for("A2", "id domain of char(32)", "", ""),
    waits_for("A3", "FOR ALL TABLES", "", ""),
    waits_for("A3", "FOR TABLES IN SCHEMA", "", ""),
    waits_for("A3", "a publication of our name for all tables", "", ""),
    waits_for("A3", "two outboxes in two databases with FOR ALL", "", ""),
    waits_for("A4", "two outboxes", "", ""),
    waits_for("A6", "a trigger before UPDATE that raises", "", "sent_at"),
    waits_for("A6", "sent_at generated", "", "sent_at"),
    waits_for("A6", "a check on sent_at", "", "sent_at"),
    waits_for("A6", "a foreign key to the outbox, of one", "", "delete"),
    waits_for("A6", "a trigger before DELETE that raises", "", "delete"),
    waits_for("A6", "a trigger after DELETE that raises", "", "delete"),
    waits_for("A7", "a trigger before UPDATE that keeps", "", "sent_at"),
    waits_for("A7", "a trigger before DELETE that keeps", "", "delete"),
    waits_for("A7", "a rule instead of UPDATE", "", "sent_at"),
    waits_for("A7", "a rule instead of DELETE", "", "delete"),
    waits_for("A8", "SQL_ASCII with a byte", "", ""),
    waits_for("A9", "a child by INHERITS", "", ""),
    waits_for("A10", "partitionkey generated", "", ""),
    waits_for("A10", "partitionkey virtual", "", ""),
    waits_for("A11", "seq from -", "", ""),
    waits_for("A11", "seq from 0", "", ""),
    waits_for("A11", "seq integer", "", ""),
    waits_for("A11", "seq smallint", "", ""),
    waits_for("A11", "seq near the end of", "", ""),
    waits_for("A15", "unnumbered", "replication", ""),
    waits_for("A15", "no numbers", "replication", ""),
    waits_for("A15", "no key at all", "replication", ""),
    waits_for("A15", "Debezium's five columns", "replication", ""),
    waits_for("A20", "unnumbered, now after 100,000", "", ""),
    waits_for("A20", "large values beside", "", ""),
    waits_for("A20", "plain, now after 100,000", "", ""),
    // Rows that the publication keeps from the stream, before the first start.
    waits_for(
        "a drift that check refuses",
        "a publication of our name",
        "",
        "",
    ),
    // Rows without a number are not read from the table.
    waits_for("A15", "seq domain of bigint", "", ""),
    waits_for("A15", "itself a partition", "", ""),
    waits_for("A24", "seq drawn", "", ""),
    waits_for("A24", "seq downwards", "", ""),
    waits_for("A24", "seq of a sequence of its own", "", ""),
    waits_for(
        "sent_at that is never NULL",
        "sent_at with a default",
        "",
        "sent_at",
    ),
    waits_for(
        "sent_at that is never NULL",
        "sent_at not null",
        "",
        "sent_at",
    ),
    waits_for(
        "a finding without a remedy",
        "least rights, row security",
        "",
        "",
    ),
    waits_for(
        "a remedy that fails too",
        "owner without REPLICATION",
        "",
        "",
    ),
    // Seen with one mark only so far, or with none.
    waits_for("a first run", "role: ", "", ""),
];

const fn waits_for(
    row: &'static str,
    shape: &'static str,
    mode: &'static str,
    mark: &'static str,
) -> Waits {
    Waits {
        shape,
        mode,
        mark,
        row,
    }
}

/// What a case waits for.
pub fn waits(case: &Case) -> Option<&'static str> {
    let is_it = |one: &&Waits| {
        case.shape.name.starts_with(one.shape)
            && case.pair.mode.starts_with(one.mode)
            && case.pair.mark.starts_with(one.mark)
    };
    KNOWN.iter().find(is_it).map(|one| one.row)
}
