//! What a publication keeps from the stream: rows that it leaves out never reach the relay.
//!
//! Reads the catalog only.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use crate::inspect::{Table, TableKind};

/// One reason why the stream would not bring every row, or not every column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    pub text: String,
    /// The SQL that mends it.
    pub remedy: String,
    /// `outboxd migrate` mends it too.
    pub is_migrated: bool,
}

/// Reads what is wrong with a publication of the outbox; nothing where it publishes every row whole.
///
/// Source: PostgreSQL, `pg_publication`, `pg_publication_rel` (row filters and column lists came with 15).
/// Cancel-safe: yes.
pub async fn drift(
    client: &Client,
    name: &str,
    table: &Table,
) -> Result<Vec<Drift>, tokio_postgres::Error> {
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int4";
    let version: i32 = client.query_one(version, &[]).await?.get(0);
    let left_out = if version < 150_000 {
        NOTHING_LEFT_OUT
    } else {
        LEFT_OUT
    };
    let sql = format!("{PUBLICATION} {left_out} WHERE p.pubname = $1");
    let row = client.query_opt(&sql, &[&name, &table.oid]).await?;
    let words = Words::new(name, table);
    let Some(row) = row else {
        return Ok(vec![words.missing()]);
    };
    let found = Found {
        has_table: row.get("has_table"),
        publishes_inserts: row.get("pubinsert"),
        is_via_root: row.get("pubviaroot"),
        filter: row.get("filter"),
        left_out: row.get("left_out"),
    };
    Ok(words.judge(&found, table.kind))
}

struct Found {
    has_table: bool,
    publishes_inserts: bool,
    is_via_root: bool,
    filter: Option<String>,
    /// Columns that a column list leaves out.
    left_out: Vec<String>,
}

/// The names of publication and table, for people and for SQL.
struct Words<'a> {
    name: &'a str,
    quoted: String,
    shown: String,
    table: String,
}

impl<'a> Words<'a> {
    fn new(name: &'a str, table: &Table) -> Self {
        Self {
            name,
            quoted: escape_identifier(name),
            shown: table.layout.outbox(),
            table: table.name(),
        }
    }

    fn missing(&self) -> Drift {
        Drift {
            text: format!("publication `{}` does not exist", self.name),
            remedy: format!(
                "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert', publish_via_partition_root = true);",
                self.quoted, self.table
            ),
            is_migrated: true,
        }
    }

    fn judge(&self, found: &Found, kind: TableKind) -> Vec<Drift> {
        let Self {
            name,
            quoted,
            shown,
            table,
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
                format!("ALTER PUBLICATION {quoted} SET (publish = 'insert');"),
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
        let again = format!(
            "ALTER PUBLICATION {quoted} DROP TABLE {table}; ALTER PUBLICATION {quoted} ADD TABLE {table};"
        );
        if let Some(filter) = &found.filter {
            note(
                format!(
                    "publication `{name}` has a row filter on `{shown}`, {filter}: the stream does not bring other rows"
                ),
                again.clone(),
                false,
            );
        }
        if !found.left_out.is_empty() {
            let left_out = found.left_out.join(", ");
            note(
                format!("publication `{name}` has a column list on `{shown}` without {left_out}"),
                again,
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
           p.pubinsert, p.pubviaroot, l.filter, coalesce(l.left_out, '{}') AS left_out
    FROM pg_catalog.pg_publication p";

const NOTHING_LEFT_OUT: &str =
    "CROSS JOIN (SELECT NULL::text AS filter, '{}'::text[] AS left_out) l";

/// Nothing where the publication has no entry for the table alone (FOR ALL TABLES leaves nothing out).
const LEFT_OUT: &str = "LEFT JOIN LATERAL (
    SELECT pg_catalog.pg_get_expr(r.prqual, r.prrelid) AS filter,
           (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = r.prrelid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
              AND r.prattrs IS NOT NULL AND NOT a.attnum = ANY (r.prattrs)) AS left_out
    FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = $2) l ON true";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::tests::trusted;

    type Change = fn(&mut Found);

    fn judge(change: Change) -> Vec<String> {
        let mut found = Found {
            has_table: true,
            publishes_inserts: true,
            is_via_root: true,
            filter: None,
            left_out: Vec::new(),
        };
        change(&mut found);
        let drift = Words::new("p", &trusted()).judge(&found, TableKind::Partitioned);
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
                |found| found.left_out = vec!["payload".to_owned()],
                "without payload",
            ),
        ];
        for (change, text) in cases {
            let said = judge(change);
            assert!(said.len() == 1 && said[0].contains(text), "{said:?}");
        }
    }
}
