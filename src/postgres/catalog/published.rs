//! Publications that keep rows of a table from being changed: PostgreSQL refuses an UPDATE or DELETE that a publication
//! is to bring and whose row it could not name.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::{Client, Row};

use crate::postgres::incompatibility::Incompatibility;

/// One publication that one table with rows can't satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublishable {
    pub publication: String,
    /// Qualified and quoted, ready for SQL.
    pub table: String,
    /// It publishes updates, and so none can be made.
    pub updates: bool,
    pub deletes: bool,
    pub why: WhyUnpublishable,
}

/// What a row can't be named by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyUnpublishable {
    /// The table has no replica identity; a unique index that could be it, where there is one.
    NoIdentity { index: Option<String> },
    /// The publication's column list leaves columns of the replica identity out, or its row filter reads others.
    Selection,
}

/// What the relay does to rows that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Update,
    Delete,
}

/// Reads which publications bar changes of a table's rows.
///
/// Source: PostgreSQL, `CheckCmdReplicaIdentity`; what counts is the partition that holds the row, and every publication
/// of it or of what it is a partition of.
pub(super) async fn read(
    client: &Client,
    oid: u32,
) -> Result<Vec<Unpublishable>, tokio_postgres::Error> {
    let rows = client
        .query(&format!("{LEAVES} {NO_IDENTITY}"), &[&oid])
        .await?;
    let mut unpublishable: Vec<Unpublishable> = rows
        .iter()
        .map(|row| {
            let index = row.get("index");
            unpublishable_for(row, WhyUnpublishable::NoIdentity { index })
        })
        .collect();
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int4 >= 150000";
    if client.query_one(version, &[]).await?.get(0) {
        let rows = client
            .query(&format!("{LEAVES} {SELECTION}"), &[&oid])
            .await?;
        unpublishable.extend(
            rows.iter()
                .map(|row| unpublishable_for(row, WhyUnpublishable::Selection)),
        );
    }
    Ok(unpublishable)
}

fn unpublishable_for(row: &Row, why: WhyUnpublishable) -> Unpublishable {
    Unpublishable {
        publication: row.get("publication"),
        table: row.get("name"),
        updates: row.get("pubupdate"),
        deletes: row.get("pubdelete"),
        why,
    }
}

/// Why rows can't be changed, with the statement that mends it; nothing where they can.
pub(crate) fn refusal(
    unpublishable: &[Unpublishable],
    change: Change,
    purpose: &str,
) -> Option<Incompatibility> {
    let applies = |one: &&Unpublishable| match change {
        Change::Update => one.updates,
        Change::Delete => one.deletes,
    };
    let one = unpublishable.iter().find(applies)?;
    let (publication, table) = (&one.publication, &one.table);
    let verb = match change {
        Change::Update => "updates",
        Change::Delete => "deletes",
    };
    let reasons = unpublishable.iter().filter(applies).collect::<Vec<_>>();
    Some(match &one.why {
        WhyUnpublishable::NoIdentity { .. } => Incompatibility {
            text: format!(
                "publication `{publication}` publishes {verb} of {table}, which has no replica identity: PostgreSQL refuses \
                 {purpose}"
            ),
            remedy: identities(&reasons),
        },
        WhyUnpublishable::Selection => Incompatibility {
            text: format!(
                "publication `{publication}` publishes {verb} of {table} with a column list or a row filter that does not go \
                 with its replica identity: PostgreSQL refuses {purpose}"
            ),
            remedy: format!(
                "ALTER PUBLICATION {} SET (publish = 'insert'); -- or give it a column list and a filter of the key's columns",
                escape_identifier(publication)
            ),
        },
    })
}

/// One statement for each table that lacks an identity.
fn identities(reasons: &[&Unpublishable]) -> String {
    let mut statements: Vec<String> = Vec::new();
    for one in reasons {
        let WhyUnpublishable::NoIdentity { index } = &one.why else {
            continue;
        };
        let identity = match index {
            Some(index) => format!("USING INDEX {}", escape_identifier(index)),
            None => "FULL".to_owned(),
        };
        let statement = format!("ALTER TABLE {} REPLICA IDENTITY {identity};", one.table);
        if !statements.contains(&statement) {
            statements.push(statement);
        }
    }
    statements.join(" ")
}

/// The tables that hold rows, and each with those it is a part of.
const LEAVES: &str = "
    WITH RECURSIVE tree (oid) AS (
        SELECT $1::oid
        UNION ALL
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid),
    leaves AS (
        SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, c.relreplident
        FROM tree JOIN pg_catalog.pg_class c USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND c.relpersistence = 'p'),
    whole AS (
        SELECT l.oid AS leaf, l.oid FROM leaves l
        UNION SELECT l.oid, a.relid::oid FROM leaves l, pg_catalog.pg_partition_ancestors(l.oid) a (relid))";

const NO_IDENTITY: &str = "
    SELECT p.pubname::text AS publication, l.name, p.pubupdate, p.pubdelete,
           (SELECT x.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
            WHERE i.indrelid = l.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
              AND i.indpred IS NULL AND i.indexprs IS NULL
              AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                              WHERE a.attrelid = l.oid AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull)
            ORDER BY i.indisprimary DESC, i.indnatts, x.relname LIMIT 1) AS index
    FROM leaves l JOIN pg_catalog.pg_publication p ON p.pubupdate OR p.pubdelete
    WHERE CASE l.relreplident
              WHEN 'f' THEN false
              WHEN 'n' THEN true
              WHEN 'd' THEN NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                                        WHERE i.indrelid = l.oid AND i.indisprimary AND i.indimmediate)
              ELSE NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = l.oid AND i.indisreplident)
          END
      AND EXISTS (SELECT FROM pg_catalog.pg_publication_tables t
                  JOIN pg_catalog.pg_class c ON c.relname = t.tablename
                  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schemaname
                  JOIN whole w ON w.oid = c.oid
                  WHERE w.leaf = l.oid AND t.pubname = p.pubname)
    ORDER BY 1, 2";

/// Column lists and row filters came with PostgreSQL 15. The columns of a filter are known by what it depends on.
const SELECTION: &str = ",
    identity AS (
        SELECT l.oid AS leaf, a.attname
        FROM leaves l
        JOIN pg_catalog.pg_index i ON i.indrelid = l.oid
             AND (l.relreplident = 'd' AND i.indisprimary OR l.relreplident = 'i' AND i.indisreplident)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = l.oid AND a.attnum = ANY (i.indkey))
    SELECT DISTINCT p.pubname::text AS publication, l.name, p.pubupdate, p.pubdelete
    FROM leaves l
    JOIN whole w ON w.leaf = l.oid
    JOIN pg_catalog.pg_publication_rel r ON r.prrelid = w.oid
    JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND (p.pubupdate OR p.pubdelete)
    WHERE r.prattrs IS NOT NULL
          AND (l.relreplident = 'f' OR EXISTS (
              SELECT FROM identity k WHERE k.leaf = l.oid AND NOT EXISTS (
                  SELECT FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = w.oid AND a.attname = k.attname AND a.attnum = ANY (r.prattrs))))
       OR r.prqual IS NOT NULL AND r.prattrs IS NULL AND l.relreplident <> 'f' AND EXISTS (
              SELECT FROM pg_catalog.pg_depend d
              JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
              WHERE d.classid = 'pg_catalog.pg_publication_rel'::regclass AND d.objid = r.oid
                AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = w.oid
                AND NOT EXISTS (SELECT FROM identity k WHERE k.leaf = l.oid AND k.attname = a.attname))
    ORDER BY 1, 2";

#[cfg(test)]
mod tests {
    use super::*;

    fn unpublishable(why: WhyUnpublishable) -> Unpublishable {
        Unpublishable {
            publication: "dbz".to_owned(),
            table: "public.outbox".to_owned(),
            updates: true,
            deletes: false,
            why,
        }
    }

    #[test]
    fn only_the_change_that_is_published_is_refused() {
        let index = Some("outbox_id_key".to_owned());
        let unpublishable = [unpublishable(WhyUnpublishable::NoIdentity { index })];
        assert_eq!(refusal(&unpublishable, Change::Delete, "it"), None);
        let refused =
            refusal(&unpublishable, Change::Update, "to set `sent_at`").expect("a refusal");
        assert!(
            refused.text.contains("`dbz` publishes updates"),
            "{refused:?}"
        );
        assert_eq!(
            refused.remedy,
            "ALTER TABLE public.outbox REPLICA IDENTITY USING INDEX \"outbox_id_key\";"
        );
    }

    #[test]
    fn a_table_without_a_unique_index_is_named_by_all_its_columns() {
        let unpublishable = [unpublishable(WhyUnpublishable::NoIdentity { index: None })];
        let refused = refusal(&unpublishable, Change::Update, "it").expect("a refusal");
        assert!(
            refused.remedy.ends_with("REPLICA IDENTITY FULL;"),
            "{refused:?}"
        );
    }
}
