//! A table that was renamed: its state is found by the table's oid, and follows to its new name.
//!
//! The name is the label of the state, the oid within one database of one server what it belongs to. The state moves
//! once, whole, under the lease of the former name, so that whoever still publishes under it is waited for.

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;

use crate::postgres::PostgresError;

/// Under which name the state of a table stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Home {
    /// Under its own, or nowhere yet.
    #[default]
    Here,
    /// Under the name that it had.
    Former(String),
    /// Under the name that it had, and its own is another table's, whose present name is known while it stands.
    Occupied { former: String, by: Option<String> },
}

/// Why the state could not be found or moved.
#[derive(Debug, thiserror::Error)]
pub enum RenameError {
    #[error("cannot find the state of `{outbox}`")]
    Find {
        outbox: String,
        #[source]
        source: PostgresError,
    },
    #[error("cannot move the state of `{former}` to `{outbox}`")]
    Move {
        former: String,
        outbox: String,
        #[source]
        source: PostgresError,
    },
    #[error("the lease of `{0}` is no longer ours")]
    NotLeader(String),
}

impl Home {
    /// The key of the state tables.
    pub(crate) fn key<'a>(&'a self, outbox: &'a str) -> &'a str {
        match self {
            Self::Here => outbox,
            Self::Former(former) | Self::Occupied { former, .. } => former,
        }
    }

    /// The name from which the state has to move.
    pub(crate) fn former(self) -> Option<String> {
        match self {
            Self::Former(former) => Some(former),
            Self::Here | Self::Occupied { .. } => None,
        }
    }

    /// Why the state can't follow, and what helps.
    pub(crate) fn refusal(
        &self,
        outbox: &str,
    ) -> Option<crate::postgres::compatibility::Incompatibility> {
        let Self::Occupied { former, by } = self else {
            return None;
        };
        let (text, remedy) = match by {
            Some(by) => (
                format!(
                    "the state of this table stands under its former name `{former}`, and under `{outbox}` stands that of \
                     the table that is now `{by}`"
                ),
                format!("start the relay of `{by}` first: it takes its state to the new name"),
            ),
            None => (
                format!(
                    "the state of this table stands under its former name `{former}`, and under `{outbox}` stands that of a \
                     table that is gone"
                ),
                format!(
                    "forget the table that is gone: DELETE FROM outboxd.outbox WHERE outbox = {};",
                    escape_literal(outbox).trim_start()
                ),
            ),
        };
        Some(crate::postgres::compatibility::Incompatibility { text, remedy })
    }
}

/// Finds the state of a table by its oid; `Here` too where state or table do not stand.
///
/// Cancel-safe: yes, it only reads.
pub(crate) async fn home(client: &Client, schema: &str, table: &str) -> Result<Home, RenameError> {
    find(client, schema, table)
        .await
        .map_err(|error| RenameError::Find {
            outbox: format!("{schema}.{table}"),
            source: error.into(),
        })
}

async fn find(client: &Client, schema: &str, table: &str) -> Result<Home, tokio_postgres::Error> {
    if !client.query_one(MAY_LOOK, &[]).await?.get::<_, bool>(0) {
        return Ok(Home::Here);
    }
    let outbox = format!("{schema}.{table}");
    let row = client.query_opt(HOME, &[&schema, &table, &outbox]).await?;
    let Some(row) = row else {
        return Ok(Home::Here);
    };
    let former = row.get("former");
    Ok(match (row.get("is_decided"), row.get("is_ours")) {
        (false, _) => Home::Former(former),
        (true, true) => Home::Here,
        (true, false) => Home::Occupied {
            former,
            by: row.get("occupant"),
        },
    })
}

/// Moves everything that is known of an outbox to the name that its table has now, all or nothing.
///
/// `lease` is the key of the lease that is held with `epoch`; it moves along and is released.
/// Errors: `NotLeader` where the lease moved; after any other nothing was moved, or all.
/// Cancel-safe: no; the connection has to be dropped with it.
pub(crate) async fn follow(
    client: &Client,
    former: &str,
    outbox: &str,
    lease: &str,
    epoch: i64,
) -> Result<(), RenameError> {
    let failed = |error: tokio_postgres::Error| RenameError::Move {
        former: former.to_owned(),
        outbox: outbox.to_owned(),
        source: error.into(),
    };
    client.batch_execute("BEGIN").await.map_err(failed)?;
    let held = client.query_opt(HELD, &[&lease, &epoch]).await;
    if held.map_err(failed)?.is_none() {
        client.batch_execute("ROLLBACK").await.map_err(failed)?;
        return Err(RenameError::NotLeader(lease.to_owned()));
    }
    move_rows(client, former, outbox).await.map_err(failed)?;
    client.batch_execute("COMMIT").await.map_err(failed)
}

async fn move_rows(
    client: &Client,
    former: &str,
    outbox: &str,
) -> Result<(), tokio_postgres::Error> {
    // Nothing was decided under the new name; whoever waits for its lease waits for ours.
    client.execute(UNDECIDED, &[&outbox]).await?;
    client.execute(OTHER_LEASE, &[&former, &outbox]).await?;
    let tables: Vec<String> = client.query_one(TABLES, &[]).await?.get(0);
    for table in tables {
        let sql = format!(
            "UPDATE outboxd.{} SET outbox = $2::text || substr(outbox, length($1::text) + 1) \
             WHERE outbox = $1::text OR left(outbox, length($1::text) + 1) = $1::text || '#' AND substr(outbox, length($1::text) + 2) ~ '^[a-z0-9_]+$'",
            escape_identifier(&table)
        );
        client.execute(&sql, &[&former, &outbox]).await?;
    }
    client.execute(RELEASE, &[&outbox]).await?;
    Ok(())
}

const MAY_LOOK: &str = "
    SELECT coalesce(bool_or(CASE WHEN pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                                 THEN pg_catalog.has_table_privilege(c.oid, 'SELECT') END), false)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'outboxd' AND c.relname = 'outbox'";

/// A row without the identity of a table was never read: `migrate` made it.
const HOME: &str = "
    SELECT b.outbox AS former,
           own.table_oid IS NOT NULL AND (own.start IS NOT NULL OR own.caught_up) AS is_decided,
           coalesce(own.table_oid = c.oid, false) AS is_ours,
           (SELECT pg_catalog.format('%s.%s', on_.nspname, oc.relname)
            FROM pg_catalog.pg_class oc JOIN pg_catalog.pg_namespace on_ ON on_.oid = oc.relnamespace
            WHERE oc.oid = own.table_oid) AS occupant
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $1
    JOIN outboxd.outbox b ON b.table_oid = c.oid AND b.database = pg_catalog.current_database()
         AND b.system_identifier = (SELECT s.system_identifier::text FROM pg_catalog.pg_control_system() s)
         AND b.outbox <> $3
    LEFT JOIN outboxd.outbox own ON own.outbox = $3
    WHERE c.relname = $2
    ORDER BY b.at DESC LIMIT 1";

const HELD: &str = "
    SELECT FROM outboxd.lease WHERE outbox = $1 AND epoch = $2 AND NOT released FOR UPDATE";

const UNDECIDED: &str = "
    DELETE FROM outboxd.outbox WHERE outbox = $1 AND (table_oid IS NULL OR start IS NULL AND NOT caught_up)";

const OTHER_LEASE: &str = "
    DELETE FROM outboxd.lease l USING outboxd.lease f
    WHERE (f.outbox = $1::text OR left(f.outbox, length($1::text) + 1) = $1::text || '#')
      AND l.outbox = $2::text || substr(f.outbox, length($1::text) + 1)";

/// Every table of ours that knows outboxes by their name.
const TABLES: &str = "
    SELECT coalesce(array_agg(c.relname::text ORDER BY c.relname), '{}')
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'outboxd'
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'outbox' AND NOT a.attisdropped
    WHERE c.relkind = 'r'";

const RELEASE: &str = "
    UPDATE outboxd.lease SET released = true, epoch = epoch + 1
    WHERE outbox = $1::text OR left(outbox, length($1::text) + 1) = $1::text || '#'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_another_table_has_is_not_taken() {
        let occupied = |by: Option<&str>| Home::Occupied {
            former: "public.new".to_owned(),
            by: by.map(str::to_owned),
        };
        let refused = occupied(Some("public.old")).refusal("public.outbox");
        assert!(refused.is_some_and(|one| one.remedy.contains("relay of `public.old` first")));
        let refused = occupied(None).refusal("public.outbox");
        assert!(refused.is_some_and(|one| one.remedy.contains("outbox = 'public.outbox'")));
        assert_eq!(Home::Former("a.b".to_owned()).refusal("a.c"), None);
        assert_eq!(Home::Former("a.b".to_owned()).key("a.c"), "a.b");
    }
}
