//! What a user's own table calls the columns that outboxd knows by names of its own. Pure.

use std::collections::BTreeMap;

use postgres_protocol::escape::escape_identifier;

/// The names that the relay reads by, Debezium's first.
pub(crate) const OURS: [&str; 15] = [
    "id",
    "aggregatetype",
    "aggregateid",
    "type",
    "payload",
    "headers",
    "topic",
    "partitionkey",
    "correlationid",
    "causationid",
    "traceparent",
    "tracestate",
    "seq",
    "created_at",
    "sent_at",
];

/// Without these a table is no outbox.
pub(crate) fn is_mandatory(ours: &str) -> bool {
    matches!(ours, "id" | "aggregatetype" | "aggregateid" | "payload")
}

/// `source.columns`: the table's names by ours; what is not mapped has our name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames(BTreeMap<String, Mapped>);

/// One column that has another name than ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub name: String,
    /// Where the configuration says so, for people.
    pub at: String,
}

impl ColumnNames {
    pub(crate) fn new(mapped: BTreeMap<String, Mapped>) -> Self {
        Self(mapped)
    }

    /// Every column has our name.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the table calls the column that we call so.
    pub(crate) fn of<'a>(&'a self, ours: &'a str) -> &'a str {
        self.0.get(ours).map_or(ours, |mapped| &mapped.name)
    }

    /// The same for SQL.
    pub(crate) fn sql(&self, ours: &str) -> String {
        escape_identifier(self.of(ours))
    }

    /// The same for SQL that people read: our own names need no quotes.
    pub(crate) fn plain_sql(&self, ours: &str) -> String {
        match self.of(ours) {
            same if same == ours => ours.to_owned(),
            other => escape_identifier(other),
        }
    }

    /// A column of our name that stands for another of ours is not taken for its own.
    pub(crate) fn is_taken(&self, ours: &str) -> bool {
        !self.0.contains_key(ours) && self.0.values().any(|mapped| mapped.name == ours)
    }

    /// Our name, and what the configuration says of it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Mapped)> {
        self.0.iter().map(|(ours, mapped)| (ours.as_str(), mapped))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn mapped(names: &[(&str, &str)]) -> ColumnNames {
        let mapped = names.iter().enumerate().map(|(line, (ours, name))| {
            let mapped = Mapped {
                name: (*name).to_owned(),
                at: format!("o.toml:{}", line + 1),
            };
            ((*ours).to_owned(), mapped)
        });
        ColumnNames::new(mapped.collect())
    }

    #[test]
    fn a_column_that_stands_for_another_is_not_taken_for_its_own() {
        let names = mapped(&[("id", "event \"id\""), ("aggregatetype", "topic")]);
        assert_eq!(names.of("id"), "event \"id\"");
        assert_eq!(names.sql("id"), "\"event \"\"id\"\"\"");
        assert_eq!(names.of("payload"), "payload");
        assert!(names.is_taken("topic"));
        assert!(!names.is_taken("id") && !names.is_taken("payload"));
    }
}
