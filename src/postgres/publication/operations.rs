//! What our own publication brings beside inserts: changes, where a row's own transaction may make them and none of ours does.

use tokio_postgres::Client;
use tracing::{debug, info, warn};

use crate::config::{Config, Mark};
use crate::postgres::catalog::{Table, TableKind};
use crate::postgres::compatibility::Incompatibility;
use crate::postgres::{Class, PostgresError};
use postgres_protocol::escape::escape_identifier;

/// The kinds of change that a publication of ours brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operations {
    Inserts,
    /// A row's own transaction may change it before it commits.
    InsertsAndUpdates,
}

impl Operations {
    /// The value of `publish`.
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::Inserts => "insert",
            Self::InsertsAndUpdates => "insert, update",
        }
    }

    /// What suits a table and a mark.
    pub(crate) fn of(mark: Mark, table: &Table) -> Self {
        match inserts_alone(mark, table) {
            Some(_) => Self::Inserts,
            None => Self::InsertsAndUpdates,
        }
    }

    fn brings_updates(self) -> bool {
        self == Self::InsertsAndUpdates
    }
}

/// Why the stream brings rows as they were inserted, whatever their transactions make of them.
///
/// An UPDATE of a published table without a replica identity fails: no application may meet that.
pub(crate) fn inserts_alone(mark: Mark, table: &Table) -> Option<Incompatibility> {
    let name = table.name();
    let text = |why: &str| {
        format!("a row that its own transaction changes is sent as it was inserted, for {why}")
    };
    if mark == Mark::SentAt {
        return Some(Incompatibility {
            text: text("marks in `sent_at` are changes, too"),
            remedy: "source.mark = \"ledger\", or source.mode = \"polling\"; or insert each row once and whole"
                .to_owned(),
        });
    }
    let without = table.leaves.iter().find(|leaf| !leaf.has_identity);
    let is_unsure = table.kind == TableKind::Partitioned && !table.has_primary_key;
    let without = without.map(|leaf| leaf.name.clone());
    let without = without.or(is_unsure.then(|| name.clone()))?;
    Some(Incompatibility {
        text: text(&format!("`{without}` has no replica identity")),
        remedy: format!(
            "ALTER TABLE {name} ADD PRIMARY KEY (…); or insert each row once and whole"
        ),
    })
}

/// Makes the publication bring what suits the table, where it is this table's alone and the role may.
///
/// Cancel-safe: yes.
pub(crate) async fn adapt(
    client: &Client,
    config: &Config,
    table: &Table,
) -> Result<(), tokio_postgres::Error> {
    let name = &config.source.replication.publication;
    let Some(row) = client
        .query_opt(&found_sql(client).await?, &[name, &table.oid])
        .await?
    else {
        return Ok(());
    };
    let wanted = Operations::of(config.source.mark, table);
    let (has_updates, is_plain): (bool, bool) = (row.get("pubupdate"), row.get("is_plain"));
    if has_updates == wanted.brings_updates() || !is_plain {
        return Ok(());
    }
    let operations = wanted.sql();
    let sql = format!(
        "ALTER PUBLICATION {} SET (publish = '{operations}')",
        escape_identifier(name)
    );
    match client
        .batch_execute(&sql)
        .await
        .map_err(PostgresError::from)
    {
        Ok(()) => info!(
            publication = name,
            operations, "the publication now publishes what suits the table"
        ),
        Err(error) if error.class() == Class::Permission && wanted.brings_updates() => {
            debug!(
                publication = name,
                "the role may not change the publication"
            );
        }
        Err(error) => warn!(
            publication = name,
            error = crate::text::chain(&error),
            remedy = sql,
            "cannot change which operations the publication publishes"
        ),
    }
    Ok(())
}

/// A publication of one table whole, and of its inserts.
async fn found_sql(client: &Client) -> Result<String, tokio_postgres::Error> {
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int4";
    let version: i32 = client.query_one(version, &[]).await?.get(0);
    let whole = match version {
        ..150_000 => "true",
        _ => "bool_and(r.prqual IS NULL AND r.prattrs IS NULL)",
    };
    let schemas = match version {
        ..150_000 => "true",
        _ => {
            "NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = p.oid)"
        }
    };
    Ok(format!(
        "SELECT p.pubupdate, p.pubinsert AND NOT (p.puballtables OR p.pubdelete OR p.pubtruncate) AND {schemas} \
           AND (SELECT coalesce(count(*) = 1 AND bool_and(r.prrelid = $2) AND {whole}, false) \
                FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid) AS is_plain \
         FROM pg_catalog.pg_publication p WHERE p.pubname = $1"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::tests::trusted;

    #[test]
    fn changes_are_brought_where_no_application_and_no_mark_suffers_for_it() {
        let mut table = trusted();
        for mark in [Mark::Ledger, Mark::Delete, Mark::None] {
            assert_eq!(Operations::of(mark, &table), Operations::InsertsAndUpdates);
        }
        assert_eq!(Operations::of(Mark::SentAt, &table), Operations::Inserts);
        table.kind = TableKind::Partitioned;
        table.has_primary_key = false;
        assert_eq!(Operations::of(Mark::Ledger, &table), Operations::Inserts);
        table.kind = TableKind::Ordinary;
        table.leaves[0].has_identity = false;
        let why = inserts_alone(Mark::Ledger, &table).unwrap();
        assert!(
            why.text.contains("`outbox` has no replica identity"),
            "{}",
            why.text
        );
    }
}
