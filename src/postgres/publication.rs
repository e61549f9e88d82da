//! What a publication keeps from the stream: rows that it leaves out never reach the relay.
//!
//! Reads the catalog only.

mod operations;

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use crate::config::{Config, RouteConfig};
use crate::encode::Encoder;
use crate::postgres::catalog::{Table, TableKind};
use crate::row::Layout;

pub(crate) use operations::{Operations, adapt, inserts_alone};

/// The columns without which a row has no record, or another one.
pub(crate) fn needed(route: &RouteConfig, layout: &Layout) -> Vec<usize> {
    let mut needed = vec![
        layout.id,
        layout.aggregate_type,
        layout.aggregate_id,
        layout.payload,
    ];
    needed.extend(layout.seq);
    // A route that does not fit the table is refused elsewhere.
    if let Ok(encoder) = Encoder::new(route, layout, 0) {
        needed.extend(encoder.columns());
    }
    needed.sort_unstable();
    needed.dedup();
    needed
}

/// One reason why the stream would not bring every row, or not every column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drift {
    pub text: String,
    /// The SQL that mends it.
    pub remedy: String,
    /// `outboxd migrate` mends it too, and until then the sweep finds what the stream misses. What it does not mend forbids
    /// to publish: records would be others than those of the rows, or rows pass their followers.
    pub is_migrated: bool,
}

/// Reads what is wrong with a publication of the outbox; nothing where it publishes every row whole.
///
/// Source: PostgreSQL, `pg_publication`, `pg_publication_rel` (row filters and column lists came with 15).
/// Cancel-safe: yes.
pub(crate) async fn drift(
    client: &Client,
    config: &Config,
    table: &Table,
) -> Result<Vec<Drift>, tokio_postgres::Error> {
    let name = &config.source.replication.publication;
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int4";
    let version: i32 = client.query_one(version, &[]).await?.get(0);
    let operations = Operations::of(config.source.mark, table);
    let words = Words::new(name, table, operations);
    let mut drift = reach(client, version, &words, table).await?;
    let hidden = hidden(client, version, &words, table.oid).await?;
    let needed = needed(&config.route, &table.layout);
    let is_needed = |column: &Hidden| {
        let at = table.layout.column(&column.name);
        at.is_some_and(|at| needed.contains(&at))
    };
    let hidden = hidden.iter().filter(|column| is_needed(column));
    drift.extend(hidden.map(|column| words.hides(column, version)));
    Ok(drift)
}

/// What keeps rows from the stream.
async fn reach(
    client: &Client,
    version: i32,
    words: &Words<'_>,
    table: &Table,
) -> Result<Vec<Drift>, tokio_postgres::Error> {
    let filter = if version < 150_000 {
        "NULL::text"
    } else {
        "(SELECT pg_catalog.pg_get_expr(r.prqual, r.prrelid) FROM pg_catalog.pg_publication_rel r \
          WHERE r.prpubid = p.oid AND r.prrelid = $2)"
    };
    let sql = format!(
        "{PUBLICATION}, {filter} AS filter FROM pg_catalog.pg_publication p WHERE p.pubname = $1"
    );
    let row = client.query_opt(&sql, &[&words.name, &table.oid]).await?;
    let Some(row) = row else {
        return Ok(vec![words.missing()]);
    };
    let found = Found {
        has_table: row.get("has_table"),
        publishes_inserts: row.get("pubinsert"),
        is_via_root: row.get("pubviaroot"),
        filter: row.get("filter"),
        has_root: row.get("has_root"),
    };
    Ok(words.judge(&found, table.kind))
}

/// The columns that the stream leaves out of every row.
///
/// Source: PostgreSQL 18, `publish_generated_columns`; before, no publication brought a generated column.
async fn hidden(
    client: &Client,
    version: i32,
    words: &Words<'_>,
    oid: u32,
) -> Result<Vec<Hidden>, tokio_postgres::Error> {
    let (list, generated) = match version {
        ..150_000 => ("true", "false"),
        150_000..180_000 => (LISTED, "false"),
        _ => (
            LISTED,
            "a.attgenerated = 's' AND (r.prattrs IS NOT NULL OR coalesce(p.pubgencols, 'n') = 's')",
        ),
    };
    let sql = format!(
        "{COLUMNS} AND NOT ({list} AND (a.attgenerated = '' OR {generated})) ORDER BY a.attnum"
    );
    let rows = client.query(&sql, &[&words.name, &oid]).await?;
    let hidden = |row: &tokio_postgres::Row| Hidden {
        name: row.get("name"),
        generated: match row.get("generated") {
            "" => Generated::Not,
            "s" => Generated::Stored,
            _ => Generated::Virtual,
        },
    };
    Ok(rows.iter().map(hidden).collect())
}

/// A column that the stream leaves out.
struct Hidden {
    name: String,
    generated: Generated,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Generated {
    /// A column list leaves it out.
    Not,
    Stored,
    Virtual,
}

struct Found {
    has_table: bool,
    publishes_inserts: bool,
    is_via_root: bool,
    filter: Option<String>,
    /// It publishes a table above this partition too, and all rows under that one's name.
    has_root: bool,
}

/// The names of publication and table, for people and for SQL.
struct Words<'a> {
    name: &'a str,
    quoted: String,
    shown: String,
    table: String,
    operations: &'static str,
}

impl<'a> Words<'a> {
    fn new(name: &'a str, table: &Table, operations: Operations) -> Self {
        Self {
            name,
            quoted: escape_identifier(name),
            shown: table.layout.outbox(),
            table: table.name(),
            operations: operations.sql(),
        }
    }

    fn missing(&self) -> Drift {
        Drift {
            text: format!("publication `{}` does not exist", self.name),
            remedy: format!(
                "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = '{}', publish_via_partition_root = true);",
                self.quoted, self.table, self.operations
            ),
            is_migrated: true,
        }
    }

    /// A record would be made without a column that it needs.
    fn hides(&self, column: &Hidden, version: i32) -> Drift {
        let Self {
            name,
            quoted,
            shown,
            table,
            ..
        } = self;
        let Hidden {
            name: column,
            generated,
        } = column;
        let polling = "or set source.mode = \"polling\"";
        let (text, remedy) = match generated {
            Generated::Not => (
                format!("publication `{name}` has a column list on `{shown}` without {column}"),
                self.again(),
            ),
            Generated::Stored if version >= 180_000 => (
                format!("column `{column}` is generated, and publication `{name}` does not publish it"),
                format!(
                    "ALTER PUBLICATION {quoted} SET (publish_generated_columns = stored); -- {polling}"
                ),
            ),
            Generated::Stored => (
                format!(
                    "column `{column}` is generated, and logical replication does not send such columns"
                ),
                format!(
                    "ALTER TABLE {table} ALTER COLUMN {} DROP EXPRESSION; -- and write it with each row, {polling}",
                    escape_identifier(column)
                ),
            ),
            Generated::Virtual => (
                format!(
                    "column `{column}` is generated when it is read, and logical replication does not send such columns"
                ),
                "set source.mode = \"polling\", or make it an ordinary column that is written with each row".to_owned(),
            ),
        };
        Drift {
            text,
            remedy,
            is_migrated: false,
        }
    }

    fn again(&self) -> String {
        let Self { quoted, table, .. } = self;
        format!(
            "ALTER PUBLICATION {quoted} DROP TABLE {table}; ALTER PUBLICATION {quoted} ADD TABLE {table};"
        )
    }

    fn judge(&self, found: &Found, kind: TableKind) -> Vec<Drift> {
        let Self {
            name,
            quoted,
            shown,
            table,
            operations,
        } = self;
        let mut drift = Vec::new();
        let mut note = |text: String, remedy: String, is_migrated: bool| {
            drift.push(Drift {
                text,
                remedy,
                is_migrated,
            });
        };
        if !found.has_table {
            note(
                format!("publication `{name}` does not have table `{shown}`"),
                format!("ALTER PUBLICATION {quoted} ADD TABLE {table};"),
                true,
            );
        }
        if !found.publishes_inserts {
            note(
                format!("publication `{name}` does not publish inserts"),
                format!("ALTER PUBLICATION {quoted} SET (publish = '{operations}');"),
                true,
            );
        }
        if kind == TableKind::Partitioned && !found.is_via_root {
            note(
                format!(
                    "publication `{name}` publishes the partitions of `{shown}` under their own names"
                ),
                format!("ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true);"),
                true,
            );
        }
        if let Some(filter) = &found.filter {
            note(
                format!(
                    "publication `{name}` has a row filter on `{shown}`, {filter}: other rows are not in the stream"
                ),
                self.again(),
                false,
            );
        }
        if found.has_root && found.is_via_root {
            note(
                format!(
                    "publication `{name}` publishes the rows of `{shown}` under the name of the table that it is a partition of"
                ),
                format!(
                    "CREATE PUBLICATION … FOR TABLE {table} WITH (publish = 'insert'); -- and name it in source.replication.publication"
                ),
                false,
            );
        }
        drift
    }
}

/// The table may be published alone, with all tables or with its schema.
const PUBLICATION: &str = "
    SELECT p.puballtables OR EXISTS (
               SELECT FROM pg_catalog.pg_publication_tables t
               JOIN pg_catalog.pg_class c ON c.relname = t.tablename
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schemaname
               WHERE t.pubname = p.pubname AND c.oid = $2)
           OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = $2)
               AS has_table,
           p.pubinsert, p.pubviaroot,
           EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors($2) AS above
                   WHERE above.relid <> $2 AND (p.puballtables OR EXISTS (
                       SELECT FROM pg_catalog.pg_publication_rel r
                       WHERE r.prpubid = p.oid AND r.prrelid = above.relid))) AS has_root";

const COLUMNS: &str = "
    SELECT a.attname::text AS name, a.attgenerated::text AS generated
    FROM pg_catalog.pg_attribute a
    LEFT JOIN pg_catalog.pg_publication p ON p.pubname = $1
    LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = a.attrelid
    WHERE a.attrelid = $2 AND a.attnum > 0 AND NOT a.attisdropped";

const LISTED: &str = "(r.prattrs IS NULL OR a.attnum = ANY (r.prattrs))";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::tests::trusted;

    type Change = fn(&mut Found);

    fn judge(change: Change) -> Vec<String> {
        let mut found = Found {
            has_table: true,
            publishes_inserts: true,
            is_via_root: true,
            filter: None,
            has_root: false,
        };
        change(&mut found);
        let words = Words::new("p", &trusted(), Operations::Inserts);
        let drift = words.judge(&found, TableKind::Partitioned);
        drift.into_iter().map(|one| one.text).collect()
    }

    #[test]
    fn everything_that_keeps_a_row_from_the_stream_is_named() {
        assert!(judge(|_| ()).is_empty());
        let cases: [(Change, &str); 5] = [
            (
                |found| found.has_table = false,
                "does not have table `public.outbox`",
            ),
            (
                |found| found.publishes_inserts = false,
                "does not publish inserts",
            ),
            (|found| found.is_via_root = false, "under their own names"),
            (
                |found| found.filter = Some("(seq > 5)".to_owned()),
                "row filter",
            ),
            (
                |found| found.has_root = true,
                "under the name of the table that it is a partition of",
            ),
        ];
        for (change, text) in cases {
            let said = judge(change);
            assert!(said.len() == 1 && said[0].contains(text), "{said:?}");
        }
    }
}
