//! The name of the outbox table: `schema.table`, in PostgreSQL's own syntax.

use std::fmt;

/// A table's schema and name, unquoted and folded as PostgreSQL would.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TableName {
    pub schema: String,
    pub table: String,
}

/// PostgreSQL cuts longer names off (NAMEDATALEN − 1).
const NAME_BYTES_MAX: usize = 63;

impl TableName {
    /// Reads `table` or `schema.table`; the schema is `public` where none is named.
    ///
    /// A part without double quotes is folded to lower case; `""` inside quotes is one quote.
    pub(crate) fn parse(text: &str) -> Result<Self, TableNameError> {
        let (first, rest) = identifier(text)?;
        if rest.is_empty() {
            return Ok(Self {
                schema: "public".to_owned(),
                table: first,
            });
        }
        let rest = rest.strip_prefix('.').ok_or(TableNameError::Syntax)?;
        match identifier(rest)? {
            (table, "") => Ok(Self {
                schema: first,
                table,
            }),
            (_, rest) if rest.starts_with('.') => Err(TableNameError::Parts),
            _ => Err(TableNameError::Syntax),
        }
    }

    /// The name as SQL, both parts quoted.
    pub(crate) fn quoted(&self) -> String {
        let quote = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }

    /// The default name of the slot and the publication: `outboxd_database__schema__table`.
    ///
    /// No two tables of one server share it: a digest follows where cleaning to `[a-z0-9_]`, underscores or 63 bytes
    /// would let two names meet.
    pub(crate) fn slot(&self, database: &str) -> String {
        let parts = [database, &self.schema, &self.table];
        let cleaned = parts.map(clean).join("__");
        let name = format!("{PREFIX}{cleaned}");
        if parts.iter().all(|part| stands_for_itself(part)) && name.len() <= NAME_BYTES_MAX {
            return name;
        }
        let digest = digest(&parts.join("\0"));
        let room = NAME_BYTES_MAX - digest.len() - 1;
        format!("{}_{digest}", &name[..name.len().min(room)])
    }

    /// The default name before databases and schemas were part of it.
    pub(crate) fn short_slot(&self) -> String {
        let name = format!("{PREFIX}{}", clean(&self.table));
        name.chars().take(NAME_BYTES_MAX).collect()
    }
}

const PREFIX: &str = "outboxd_";

fn clean(part: &str) -> String {
    let clean = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    part.chars().map(clean).collect()
}

/// Whether a part is clean and can't be mistaken for another beside `__`.
fn stands_for_itself(part: &str) -> bool {
    let is_at_edge = part.starts_with('_') || part.ends_with('_');
    clean(part) == part && !is_at_edge && !part.contains("__")
}

/// Eight hexadecimal digits that stay the same for ever (FNV-1a).
pub(crate) fn digest(text: &str) -> String {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    format!("{:08x}", text.bytes().fold(0x811c_9dc5, step))
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// Why a text names no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableNameError {
    #[error("is not a table name")]
    Syntax,
    #[error("has more than two parts")]
    Parts,
    #[error("has an opening quote without a closing one")]
    Quote,
    #[error("has a part longer than PostgreSQL's 63 bytes")]
    Length,
}

/// Takes one identifier off the front.
fn identifier(text: &str) -> Result<(String, &str), TableNameError> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_identifier(quoted)?,
        None => {
            let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
            let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
            let (name, rest) = text.split_at(end);
            if name.starts_with(|c: char| c.is_ascii_digit() || c == '$') {
                return Err(TableNameError::Syntax);
            }
            (name.to_ascii_lowercase(), rest)
        }
    };
    if name.is_empty() || name.contains('\0') {
        return Err(TableNameError::Syntax);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(TableNameError::Length);
    }
    Ok((name, rest))
}

/// Takes the rest of a quoted identifier off, its closing quote included.
fn quoted_identifier(mut text: &str) -> Result<(String, &str), TableNameError> {
    let mut name = String::new();
    loop {
        let (part, rest) = text.split_once('"').ok_or(TableNameError::Quote)?;
        name.push_str(part);
        match rest.strip_prefix('"') {
            Some(_) => name.push('"'),
            None => return Ok((name, rest)),
        }
        text = &rest[1..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(schema: &str, table: &str) -> TableName {
        TableName {
            schema: schema.to_owned(),
            table: table.to_owned(),
        }
    }

    #[test]
    fn a_name_is_read_as_postgresql_reads_it() {
        assert_eq!(TableName::parse("Outbox"), Ok(name("public", "outbox")));
        assert_eq!(
            TableName::parse("Shop.Outbox_2"),
            Ok(name("shop", "outbox_2"))
        );
        assert_eq!(
            TableName::parse(r#"shop."Out""box.x""#),
            Ok(name("shop", "Out\"box.x"))
        );
        assert_eq!(TableName::parse("a.b.c"), Err(TableNameError::Parts));
        assert_eq!(TableName::parse("\"a"), Err(TableNameError::Quote));
        for text in [
            "", ".", "a.", ".b", "a b", "a;drop", "1a", "\"\"", "a.\"b\"c", "a-b",
        ] {
            assert_eq!(
                TableName::parse(text),
                Err(TableNameError::Syntax),
                "{text}"
            );
        }
        assert_eq!(
            TableName::parse(&"x".repeat(64)),
            Err(TableNameError::Length)
        );
    }

    #[test]
    fn the_default_slot_holds_database_schema_and_table() {
        assert_eq!(
            name("orders", "order_outbox").slot("shop"),
            "outboxd_shop__orders__order_outbox"
        );
        assert_eq!(
            name("s", "Out-Böx").slot("shop"),
            "outboxd_shop__s__out_b_x_49faf73e"
        );
        assert_eq!(name("s", "Out-Böx").short_slot(), "outboxd_out_b_x");
    }

    #[test]
    fn default_slots_of_names_that_look_alike_differ() {
        let slots = [
            name("a", "b__c").slot("d"),
            name("a__b", "c").slot("d"),
            name("a_", "_b").slot("d"),
            name("a", "b-c").slot("d"),
            name("a", "b c").slot("d"),
            name("a", "b_c").slot("d"),
            name("A", "b_c").slot("d"),
            name("a", &"x".repeat(62)).slot("d"),
            name("a", &"x".repeat(63)).slot("d"),
        ];
        let different: std::collections::HashSet<&String> = slots.iter().collect();
        assert_eq!(different.len(), slots.len(), "{slots:?}");
    }

    proptest! {
        #[test]
        fn every_default_slot_is_a_legal_name(database in "[^\0]{1,40}", schema in "[^\0]{1,40}", table in "[^\0]{1,40}") {
            let slot = name(&schema, &table).slot(&database);
            prop_assert!(slot.len() <= NAME_BYTES_MAX, "{}", slot);
            prop_assert!(slot.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
        }
    }

    proptest! {
        #[test]
        fn a_quoted_name_reads_back(schema in "[^\0]{1,15}", table in "[^\0]{1,15}") {
            let name = name(&schema, &table);
            prop_assert_eq!(TableName::parse(&name.quoted()), Ok(name));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = TableName::parse(&text);
        }
    }
}
