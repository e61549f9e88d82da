//! The numbered SQL files, cut into steps and filled in with an outbox's names. Pure.

use std::collections::BTreeMap;

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::mark::ledger::segment_sql;
use crate::postgres::catalog::{qualified, suffixed};
use crate::row::columns::ColumnNames;

pub(super) const OUTBOX: &str = include_str!("../../../migrations/0001_outbox.sql");
pub(super) const STATE: &str = include_str!("../../../migrations/0002_state.sql");
pub(super) const STATUS: &str = include_str!("../../../migrations/0003_status.sql");
pub(super) const GRANTS: &str = include_str!("../../../migrations/0004_grants.sql");

/// The columns of the table in `0001_outbox.sql`, `sent_at` apart.
pub(super) const COLUMNS: [&str; 16] = [
    "id",
    "aggregatetype",
    "aggregateid",
    "type",
    "payload",
    "headers",
    "topic",
    "partitionkey",
    "aggregateversion",
    "correlationid",
    "causationid",
    "traceparent",
    "tracestate",
    "occurredat",
    "seq",
    "created_at",
];

/// The values for the words in braces, ready for SQL.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// The names that follow from the table's.
    pub(super) fn new(schema: &str, table: &str, names: &ColumnNames) -> Self {
        let mut values = Self::default();
        values.set("schema", escape_identifier(schema));
        values.set("table", qualified(schema, table));
        values.set("table_literal", literal(&qualified(schema, table)));
        values.set("outbox", literal(&format!("{schema}.{table}")));
        values.set("id_key", " PRIMARY KEY".to_owned());
        values.set("seq_key", " UNIQUE".to_owned());
        values.set("partitions", String::new());
        let seq = names.plain_sql("seq");
        values.set("segment", segment_sql(&format!("o.{seq}")));
        values.set("seq", seq);
        values.set_literal("seq_name", names.of("seq"));
        values.set("sent_at", names.plain_sql("sent_at"));
        for (word, suffix) in [
            ("sequence", "_seq_seq"),
            ("status_view", "_status"),
            ("publish_function", "_publish"),
        ] {
            values.set(word, qualified(schema, &suffixed(table, suffix)));
        }
        values
    }

    pub(super) fn set(&mut self, word: &'static str, sql: String) {
        self.0.insert(word, sql);
    }

    pub(super) fn set_identifier(&mut self, word: &'static str, name: &str) {
        self.set(word, escape_identifier(name));
    }

    pub(super) fn set_literal(&mut self, word: &'static str, text: &str) {
        self.set(word, literal(text));
    }

    /// Fills a step of a file in. Values are put in once and not looked through again: a name may hold braces.
    pub(super) fn render(&self, file: &str, step: &str) -> String {
        let mut rendered = String::new();
        let mut rest = fragment(file, step);
        while let Some(start) = rest.find('{') {
            let (before, after) = rest.split_at(start);
            rendered.push_str(before);
            let end = after.find('}').map_or(1, |end| end + 1);
            match self.0.get(&after[1..end.max(2) - 1]) {
                Some(value) => rendered.push_str(value),
                None => rendered.push_str(&after[..end]),
            }
            rest = &after[end..];
        }
        rendered.push_str(rest);
        rendered
    }
}

/// `escape_literal` puts a blank before a literal that needs `E`.
pub(super) fn literal(text: &str) -> String {
    escape_literal(text).trim_start().to_owned()
}

/// The text of one step of a file; a file without such a line is one step.
fn fragment<'a>(file: &'a str, step: &str) -> &'a str {
    if step.is_empty() {
        return file.trim();
    }
    let heading = format!("--: {step}\n");
    let (_, after) = file
        .split_once(&heading)
        .expect("the steps are named in this module, and a test renders each");
    after.split("\n--: ").next().unwrap_or(after).trim()
}

/// The tables that `0002_state.sql` creates.
pub(super) fn state_tables() -> impl Iterator<Item = &'static str> {
    STATE.lines().filter_map(|line| {
        let name = line.strip_prefix("CREATE TABLE IF NOT EXISTS outboxd.")?;
        name.split([' ', '(']).next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_quotes_blanks_and_braces_is_filled_in_once() {
        let mut values = Values::new("my \"schema\"", "o'{table}", &ColumnNames::default());
        values.set("sent_at_column", String::new());
        values.set("storage", String::new());
        values.set("sent_at_index", String::new());
        let sql = values.render(OUTBOX, "table");
        assert!(
            sql.contains("CREATE TABLE \"my \"\"schema\"\"\".\"o'{table}\" ("),
            "{sql}"
        );
        assert!(
            sql.contains("VALUES ('my \"schema\".o''{table}', 'all')"),
            "{sql}"
        );
    }

    #[test]
    fn the_listed_columns_are_those_of_the_file() {
        let sql = fragment(OUTBOX, "table");
        for column in COLUMNS {
            assert!(sql.contains(&format!("\n    {column} ")), "{column}");
        }
    }

    /// Databases of other encodings take them too.
    #[test]
    fn every_file_is_ascii() {
        for file in [OUTBOX, STATE, STATUS, GRANTS] {
            let other = file.lines().find(|line| !line.is_ascii());
            assert_eq!(other, None);
        }
    }

    #[test]
    fn every_state_table_is_known() {
        let tables: Vec<&str> = state_tables().collect();
        for table in ["schema_version", "outbox", "lease", "ledger"] {
            assert!(tables.contains(&table), "{tables:?}");
        }
    }
}
