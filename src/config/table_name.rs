//! The name of the outbox table: `schema.table`, in PostgreSQL's own syntax.

use std::fmt;

/// A table's schema and name, unquoted and folded as PostgreSQL would.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

/// PostgreSQL cuts longer names off (NAMEDATALEN − 1).
const NAME_BYTES_MAX: usize = 63;

impl TableName {
    /// Reads `table` or `schema.table`; the schema is `public` where none is named.
    ///
    /// A part without double quotes is folded to lower case; `""` inside quotes is one quote.
    pub fn parse(text: &str) -> Result<Self, TableNameError> {
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
    pub fn quoted(&self) -> String {
        let quote = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
        format!("{}.{}", quote(&self.schema), quote(&self.table))
    }

    /// The default name of the slot and the publication: `outboxd_<table>`, cleaned to `[a-z0-9_]`.
    pub fn slot(&self) -> String {
        let clean = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        };
        let name: String = "outboxd_"
            .chars()
            .chain(self.table.chars().map(clean))
            .collect();
        name.chars().take(NAME_BYTES_MAX).collect()
    }
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
    fn the_default_slot_is_a_legal_slot_name() {
        assert_eq!(name("public", "outbox").slot(), "outboxd_outbox");
        assert_eq!(name("s", "Out-Böx").slot(), "outboxd_out_b_x");
        assert_eq!(name("s", &"x".repeat(63)).slot().len(), 63);
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
