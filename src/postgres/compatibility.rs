//! Which modes and marks a table allows, and why not the others (docs/design.md, "Mode, mark and table"). Pure.

use crate::config::{Mark, Mode, Start};
use crate::postgres::catalog::published::{self, Change};
use crate::postgres::catalog::{SeqFacts, SeqIndex, Table, TableKind, seq_orders, seq_trusted};
use postgres_protocol::escape::escape_identifier;

pub use crate::postgres::incompatibility::Incompatibility;

/// What orders the rows that stand in the table, where they are read from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order<'a> {
    Numbers,
    Column(&'a str),
    /// Nothing: a stream knows the order, the table does not.
    Untold,
}

/// Says in which order rows that stand in the table are read with this mark.
///
/// With `none` nothing says which rows were read before, so only numbers do.
pub(crate) fn order<'a>(mark: Mark, order_column: Option<&'a str>, table: &Table) -> Order<'a> {
    let by_numbers = match seq_orders(table) {
        Ok(()) => Order::Numbers,
        Err(_) => Order::Untold,
    };
    match mark {
        Mark::Ledger => Order::Numbers,
        Mark::SentAt | Mark::Delete => order_column.map_or(by_numbers, Order::Column),
        Mark::None => by_numbers,
    }
}

/// Why rows that stand in a table can't be read from it in their order; `start` is what was decided at the first start.
pub(crate) fn untold(mark: Mark, table: &Table, start: Option<Start>) -> Incompatibility {
    let name = table.name();
    let now = match start {
        None => "source.start = \"now\" skips them; else ",
        Some(_) => "",
    };
    let column = match mark {
        Mark::None => "",
        _ => "set source.order_column to a column that grows, such as \"created_at\"; or ",
    };
    Incompatibility {
        text: format!("{UNTOLD} of `{}`", table.layout.outbox()),
        remedy: format!(
            "{now}{column}ALTER TABLE {name} ADD COLUMN \"seq\" \
             bigint GENERATED ALWAYS AS IDENTITY UNIQUE; which numbers them in the order in which they lie"
        ),
    }
}

/// What `source.start` can be where rows stand of which nothing is known.
pub(crate) fn start_remedy(mode: Mode, order: Order<'_>) -> &'static str {
    match (mode, order) {
        (Mode::Replication, Order::Untold) => {
            "set source.start = \"now\" to skip them: no column gives the order in which \"all\" would publish them"
        }
        _ => {
            "source.start = \"all\" publishes them, source.start = \"now\" only what is committed from now on"
        }
    }
}

/// What [`untold`] begins with.
pub(crate) const UNTOLD: &str =
    "rows are in the table that the stream may not contain, and no column gives their order";

const MODES: [Mode; 2] = [Mode::Replication, Mode::Polling];
const MARKS: [Mark; 4] = [Mark::Ledger, Mark::SentAt, Mark::Delete, Mark::None];

/// The reasons against reading `table` in this mode with this mark; none where it is allowed.
pub(crate) fn refusals(
    mode: Mode,
    mark: Mark,
    order_column: Option<&str>,
    table: &Table,
) -> Vec<Incompatibility> {
    let mut refusals = Refusals::default();
    refusals.of_children(table);
    if mode == Mode::Polling && mark == Mark::None {
        refusals.add(
            "with `none` nothing says which rows polling has sent",
            "set source.mark = \"ledger\", or source.mode = \"replication\"",
        );
    }
    refusals.of_mark(mark, table);
    if matches!(mark, Mark::SentAt | Mark::Delete) {
        refusals.of_order(mode, mark, order_column, table);
    }
    if mode == Mode::Replication {
        refusals.of_log(table);
    }
    refusals.0
}

#[derive(Default)]
struct Refusals(Vec<Incompatibility>);

impl Refusals {
    fn add(&mut self, text: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Incompatibility {
            text: text.into(),
            remedy: remedy.into(),
        });
    }

    fn of_children(&mut self, table: &Table) {
        let name = table.name();
        for heir in table.leaves.iter().filter(|leaf| leaf.is_heir) {
            let heir = &heir.name;
            self.add(
                format!(
                    "`{heir}` inherits from it, and neither keys nor publication of a table reach such a child"
                ),
                format!(
                    "ALTER TABLE {heir} NO INHERIT {name}; -- and insert its rows into {name}, or make {name} a partitioned table"
                ),
            );
        }
    }

    /// What keeps rows from being marked, each for itself.
    fn of_mark(&mut self, mark: Mark, table: &Table) {
        if mark != Mark::Ledger && !tells_rows_apart(table) {
            self.add(
                "two rows may share an `id`: no unique index covers it alone, and a mark or a hold would be taken for \
                 the other row's",
                repeating_ids(table),
            );
        }
        let rules = match mark {
            Mark::SentAt => &table.update_rules[..],
            Mark::Delete => &table.delete_rules,
            Mark::Ledger | Mark::None => &[],
        };
        for rule in rules {
            self.add(
                format!("the rule {rule} rewrites the statement that marks rows"),
                format!("DROP RULE {rule};"),
            );
        }
        let change = match mark {
            Mark::SentAt => Some((Change::Update, "to set `sent_at`")),
            Mark::Delete => Some((Change::Delete, "to delete rows that were sent")),
            Mark::Ledger | Mark::None => None,
        };
        let unpublishable = change.and_then(|(change, purpose)| {
            published::refusal(&table.unpublishable, change, purpose)
        });
        self.0.extend(unpublishable);
        match mark {
            Mark::SentAt => self.of_sent_at(table),
            Mark::Ledger => {
                for distrust in seq_trusted(table).err().unwrap_or_default() {
                    let text = format!("the ledger keeps numbers, and {}", distrust.text);
                    self.add(text, distrust.remedy);
                }
            }
            Mark::Delete | Mark::None => {}
        }
    }

    fn of_sent_at(&mut self, table: &Table) {
        let (name, column) = (table.name(), table.layout.names.sql("sent_at"));
        if table.layout.sent_at.is_none() {
            self.add(
                "the table has no column `sent_at`",
                format!("ALTER TABLE {name} ADD COLUMN \"sent_at\" timestamptz;"),
            );
        }
        if table.is_born_sent {
            self.add(
                "`sent_at` has a default or is NOT NULL, and NULL is what says that a row was not sent",
                format!(
                    "ALTER TABLE {name} ALTER COLUMN {column} DROP DEFAULT, ALTER COLUMN {column} DROP NOT NULL;"
                ),
            );
        }
    }

    /// What keeps unsent rows from being read in an order.
    fn of_order(&mut self, mode: Mode, mark: Mark, order_column: Option<&str>, table: &Table) {
        let is_untold = order(mark, order_column, table) == Order::Untold;
        match order_column {
            Some(column) if table.layout.column(column).is_none() => self.add(
                format!("`source.order_column` names `{column}`, which the table does not have"),
                format!("name one of: {}", column_names(table)),
            ),
            _ if mode == Mode::Polling && is_untold => self.add(
                "its numbers give no order, and no other column gives the order of unsent rows",
                "set source.order_column to a column that grows, such as \"created_at\"",
            ),
            Some(_) | None => {}
        }
    }

    /// What the write-ahead log does not show.
    fn of_log(&mut self, table: &Table) {
        let name = table.name();
        for leaf in table.leaves.iter().filter(|leaf| !leaf.is_permanent) {
            let leaf = &leaf.name;
            self.add(
                format!("`{leaf}` is not logged, and logical replication reads the log"),
                format!("ALTER TABLE {leaf} SET LOGGED;"),
            );
        }
        for leaf in table.leaves.iter().filter(|leaf| leaf.is_foreign) {
            self.add(
                format!(
                    "the rows of `{}` stand on another server, and this one's log does not show them",
                    leaf.name
                ),
                format!("ALTER TABLE {name} DETACH PARTITION {};", leaf.name),
            );
        }
    }
}

/// Whether a row can't be taken for another one: by its number, or by its id alone.
fn tells_rows_apart(table: &Table) -> bool {
    let is_unique = |seq: &SeqFacts| seq.index == SeqIndex::Unique && seq.is_not_null;
    let has_unique_numbers = table.seq.as_ref().is_some_and(is_unique);
    table.id_is_unique || has_unique_numbers || seq_trusted(table).is_ok()
}

fn repeating_ids(table: &Table) -> String {
    let name = table.name();
    let id = escape_identifier(&table.layout.columns[table.layout.id].name);
    match table.kind {
        TableKind::Ordinary => format!("CREATE UNIQUE INDEX CONCURRENTLY ON {name} ({id});"),
        TableKind::Partitioned => format!(
            "ALTER TABLE {name} ADD COLUMN \"seq\" bigint GENERATED ALWAYS AS IDENTITY; -- rewrites the table"
        ),
    }
}

/// Every mode and mark that the table allows, such as `replication with ledger, none; polling with ledger`.
pub(crate) fn allowed(order_column: Option<&str>, table: &Table) -> String {
    let mut modes = Vec::new();
    for mode in MODES {
        let marks = MARKS.into_iter();
        let marks = marks.filter(|mark| refusals(mode, *mark, order_column, table).is_empty());
        let marks: Vec<&str> = marks.map(mark_name).collect();
        if !marks.is_empty() {
            modes.push(format!("{} with {}", mode_name(mode), marks.join(", ")));
        }
    }
    modes.join("; ")
}

fn column_names(table: &Table) -> String {
    let names: Vec<&str> = table
        .layout
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .collect();
    names.join(", ")
}

/// A mark as the configuration spells it.
pub fn mark_name(mark: Mark) -> &'static str {
    match mark {
        Mark::Ledger => "ledger",
        Mark::SentAt => "sent_at",
        Mark::Delete => "delete",
        Mark::None => "none",
    }
}

/// A mode as the configuration spells it.
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Replication => "replication",
        Mode::Polling => "polling",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::tests::{five_columns, trusted};

    #[test]
    fn a_table_with_trusted_numbers_allows_all_but_polling_without_a_mark() {
        assert_eq!(
            allowed(None, &trusted()),
            "replication with ledger, delete, none; polling with ledger, delete"
        );
    }

    #[test]
    fn debeziums_five_columns_allow_replication_that_deletes_or_marks_nothing() {
        assert_eq!(
            allowed(None, &five_columns()),
            "replication with delete, none"
        );
    }

    #[test]
    fn an_order_column_lets_a_table_without_numbers_be_polled() {
        assert_eq!(
            allowed(Some("id"), &five_columns()),
            "replication with delete, none; polling with delete"
        );
        let refusals = refusals(Mode::Polling, Mark::Delete, Some("nope"), &five_columns());
        assert_eq!(
            refusals[0].text,
            "`source.order_column` names `nope`, which the table does not have"
        );
    }

    #[test]
    fn a_row_that_is_born_sent_is_never_sent() {
        let mut table = trusted();
        table.layout.sent_at = Some(0);
        assert!(refusals(Mode::Polling, Mark::SentAt, None, &table).is_empty());
        table.is_born_sent = true;
        let refused = refusals(Mode::Polling, Mark::SentAt, None, &table);
        assert!(refused[0].text.contains("has a default"));
        assert!(refusals(Mode::Polling, Mark::Delete, None, &table).is_empty());
    }

    #[test]
    fn rows_that_may_share_an_id_need_numbers_of_their_own() {
        let mut table = five_columns();
        table.id_is_unique = false;
        assert_eq!(allowed(None, &table), "");
        let mut table = trusted();
        table.id_is_unique = false;
        assert!(tells_rows_apart(&table));
    }

    #[test]
    fn a_child_by_inheritance_is_refused_in_every_mode() {
        let mut table = trusted();
        let mut child = table.leaves[0].clone();
        child.name = "public.outbox_2024".to_owned();
        child.is_heir = true;
        table.leaves.push(child);
        assert_eq!(allowed(None, &table), "");
        let refusals = refusals(Mode::Polling, Mark::Ledger, None, &table);
        assert_eq!(
            refusals[0].remedy,
            "ALTER TABLE public.outbox_2024 NO INHERIT \"public\".\"outbox\"; -- and insert its rows into \
             \"public\".\"outbox\", or make \"public\".\"outbox\" a partitioned table"
        );
    }
}
