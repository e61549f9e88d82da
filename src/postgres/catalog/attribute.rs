//! One column as the catalog describes it, and what it must be to be used.

use tokio_postgres::Row;

/// One live column as the catalog describes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Attribute {
    pub name: String,
    pub number: i16,
    /// `format_type()`, of the type below where it is a domain, or one over a domain.
    pub type_name: String,
    pub is_not_null: bool,
    /// `a`, `d` or nothing.
    pub identity: String,
    /// The transaction that wrote its entry in the catalog: it was there in every later one.
    pub xid: u32,
    /// The expression of its default, or nothing.
    pub default: String,
    /// The oid of its type, and what is declared beside it, such as a length.
    pub type_id: (u32, i32),
}

pub(super) const ATTRIBUTES: &str = "
    SELECT a.attname::text, a.attnum, a.attnotnull, a.attidentity::text,
           pg_catalog.format_type(base.oid, base.typmod) AS type_name,
           coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') AS default_expression, a.atttypid, a.atttypmod,
           a.xmin::text::int8 AS xid
    FROM pg_catalog.pg_attribute a
    CROSS JOIN LATERAL (
        WITH RECURSIVE below (oid, typmod) AS (
            SELECT a.atttypid, a.atttypmod
            UNION ALL
            SELECT t.typbasetype, t.typtypmod FROM below JOIN pg_catalog.pg_type t USING (oid) WHERE t.typtype = 'd')
        SELECT below.* FROM below JOIN pg_catalog.pg_type t USING (oid) WHERE t.typtype <> 'd') AS base
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum";

impl Attribute {
    /// It draws its own numbers.
    pub(super) fn is_counter(&self) -> bool {
        !self.identity.is_empty() || self.default.contains("nextval(")
    }

    pub(super) fn read(row: &Row) -> Self {
        Self {
            name: row.get("attname"),
            number: row.get("attnum"),
            type_name: row.get("type_name"),
            is_not_null: row.get("attnotnull"),
            identity: row.get("attidentity"),
            xid: u32::try_from(row.get::<_, i64>("xid")).unwrap_or_default(),
            default: row.get("default_expression"),
            type_id: (row.get("atttypid"), row.get("atttypmod")),
        }
    }
}

/// What a column must be to be used.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    /// Anything whose text is a name or a key: no bytes, no JSON, no array.
    Word,
    Payload,
    Json,
    Number,
    Instant,
}

impl Wanted {
    pub(super) fn takes(self, type_name: &str) -> bool {
        let base = type_name.split('(').next().unwrap_or_default();
        match self {
            Self::Word => !matches!(base, "bytea" | "json" | "jsonb") && !base.ends_with(']'),
            Self::Payload => matches!(
                base,
                "jsonb" | "json" | "text" | "character varying" | "bytea"
            ),
            Self::Json => matches!(base, "jsonb" | "json" | "text" | "character varying"),
            Self::Number => matches!(base, "bigint" | "integer" | "smallint"),
            Self::Instant => base.starts_with("timestamp"),
        }
    }

    pub(super) fn described(self) -> &'static str {
        match self {
            Self::Word => "varchar, text, uuid or a number",
            Self::Payload => "jsonb, json, text, varchar or bytea",
            Self::Json => "jsonb, json, text or varchar",
            Self::Number => "bigint",
            Self::Instant => "timestamptz",
        }
    }

    /// The type that the remedy changes to, and how the old value becomes one.
    pub(super) fn remedy(self, column: &str, found: &str) -> (&'static str, String) {
        let (to, using) = match self {
            Self::Word if found == "bytea" => {
                return ("text", format!("convert_from({column}, 'UTF8')"));
            }
            Self::Word => ("text", "text"),
            Self::Payload => ("text", "text"),
            Self::Json => ("jsonb", "jsonb"),
            Self::Number => ("bigint", "bigint"),
            Self::Instant => ("timestamptz", "timestamptz"),
        };
        (to, format!("{column}::{using}"))
    }
}
