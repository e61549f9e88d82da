//! What of an outbox already stands in the database. Reads only.

use tokio_postgres::Client;

use super::fragment::state_tables;
use super::{Lacking, Names};
use crate::postgres::catalog::{InspectError, Table, inspect, suffixed};
use crate::state::names::{self as owned, Facts, NamesError};
use crate::state::rename::{self, Home, RenameError};

/// What was found; the default is an empty database.
#[derive(Debug, Default)]
pub(super) struct ExistingObjects {
    /// `server_version_num`.
    pub server_version: i32,
    pub table: Option<Table>,
    pub has_schema: bool,
    /// Every state table stands, as this version makes it.
    pub has_state: bool,
    /// The index by which what is kept is found.
    pub has_index: bool,
    /// This role may not look into it.
    pub is_closed: bool,
    /// The version of the state tables.
    pub version: Option<i32>,
    /// Where the state of the table stands.
    pub home: Home,
    /// The table is empty, and nothing was decided of the rows that come.
    pub is_undecided: bool,
    /// A name for the sequence of a table that is to be made.
    pub sequence: Option<String>,
    /// The body of the publish function.
    pub function: Option<String>,
    pub view: Option<View>,
    pub publication: Option<Publication>,
    pub has_slot: bool,
    /// The state says that the slot is this outbox's.
    pub has_claim: bool,
    /// Another slot of this outbox stands.
    pub has_another_slot: bool,
    /// The rows that stood before the slot were read.
    pub is_caught_up: bool,
    pub may_create_role: bool,
    pub relay: Grants,
    pub application: Grants,
}

/// A relation under the name of the status view.
#[derive(Debug)]
pub(super) struct View {
    /// Empty where there is none.
    pub comment: String,
    pub columns: Vec<String>,
    /// It shows this table, and not one that had its name before.
    pub is_of_table: bool,
}

#[derive(Debug)]
pub(super) struct Publication {
    pub has_table: bool,
    /// The table is all that it publishes.
    pub is_alone: bool,
    /// The state says that it is this outbox's.
    pub is_claimed: bool,
    /// Of its operations only inserts, and updates where this says so.
    pub is_plain: bool,
    pub has_updates: bool,
}

/// What a role may already do; nothing where the role is not there.
#[derive(Debug, Default)]
pub(super) struct Grants {
    pub role_exists: bool,
    pub reads: bool,
    pub reads_sequence: bool,
    pub updates_sent_at: bool,
    pub deletes: bool,
    pub inserts: bool,
    pub executes: bool,
    pub state: bool,
    pub status: bool,
}

/// Why the database could not be looked at.
#[derive(Debug)]
pub(super) enum LookError {
    Inspect(InspectError),
    Catalog(tokio_postgres::Error),
    /// The state schema stands, and this role may not look into it.
    Denied {
        role: String,
    },
    Names(NamesError),
}

impl From<NamesError> for LookError {
    fn from(error: NamesError) -> Self {
        Self::Names(error)
    }
}

impl From<RenameError> for LookError {
    fn from(error: RenameError) -> Self {
        Self::Names(error.into())
    }
}

impl From<tokio_postgres::Error> for LookError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Catalog(error)
    }
}

impl ExistingObjects {
    /// Looks at all that a migration would make.
    pub(super) async fn look(client: &Client, names: &Names) -> Result<Self, LookError> {
        let table = match inspect(client, &names.schema, &names.table, &names.columns).await {
            Ok(table) => Some(table),
            Err(InspectError::NotFound { .. }) => None,
            Err(error) => return Err(LookError::Inspect(error)),
        };
        let mut existing = Self {
            table,
            ..Self::default()
        };
        let schema = "SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1";
        let schema = client.query_opt(schema, &[&names.schema]).await?;
        existing.has_schema = schema.is_some();
        existing.home = rename::home(client, &names.schema, &names.table).await?;
        let key = existing.home.key(&names.outbox()).to_owned();
        existing.look_at_state(client, &key, names.lacking).await?;
        existing.is_undecided = existing.is_undecided(client, &key).await?;
        existing.look_beside_the_table(client, names).await?;
        existing.look_at_stream(client, names).await?;
        let oid = existing.table.as_ref().map(|table| table.oid);
        existing.relay = grants(client, names, names.relay_role(), oid).await?;
        if let Some(role) = &names.application_role {
            existing.application = grants(client, names, role, oid).await?;
        }
        let version = "SELECT pg_catalog.current_setting('server_version_num')::int4";
        existing.server_version = client.query_one(version, &[]).await?.get(0);
        let may = client.query_one(MAY_CREATE_ROLE, &[]).await?;
        existing.may_create_role = may.get(0);
        Ok(existing)
    }

    async fn look_at_state(
        &mut self,
        client: &Client,
        outbox: &str,
        lacking: Lacking,
    ) -> Result<(), LookError> {
        let row = client.query_one(STATE_TABLES, &[]).await?;
        let there: Vec<String> = row.get("tables");
        let keyed: Vec<String> = row.get("keyed");
        let is_keyed = |table: &str| keyed.iter().any(|one| one == table);
        self.has_state = row.get("has_mark") && state_tables().all(is_keyed);
        self.has_index = row.get("has_index");
        if there.iter().all(|one| one != "schema_version") {
            return Ok(());
        }
        self.is_closed = !row.get::<_, bool>("may_look");
        if self.is_closed && lacking == Lacking::Foresee {
            return Ok(());
        }
        if self.is_closed {
            return Err(LookError::Denied {
                role: row.get("role"),
            });
        }
        let version = "SELECT max(version) FROM outboxd.schema_version";
        self.version = client.query_one(version, &[]).await?.get(0);
        if there.iter().any(|one| one == "outbox") {
            let caught_up = "SELECT caught_up FROM outboxd.outbox WHERE outbox = $1";
            let row = client.query_opt(caught_up, &[&outbox]).await?;
            self.is_caught_up = row.is_some_and(|row| row.get(0));
        }
        Ok(())
    }

    async fn is_undecided(&self, client: &Client, outbox: &str) -> Result<bool, LookError> {
        let Some(table) = &self.table else {
            return Ok(false);
        };
        let may = "SELECT pg_catalog.has_table_privilege($1::oid, 'SELECT')";
        if !client
            .query_one(may, &[&table.oid])
            .await?
            .get::<_, bool>(0)
        {
            return Ok(false);
        }
        if self.is_closed {
            return Ok(false);
        }
        if self.has_state {
            let decided = "SELECT FROM outboxd.outbox WHERE outbox = $1 AND start IS NOT NULL";
            if client.query_opt(decided, &[&outbox]).await?.is_some() {
                return Ok(false);
            }
        }
        let empty = format!("SELECT NOT EXISTS (SELECT FROM {})", table.name());
        Ok(client.query_one(&empty, &[]).await?.get(0))
    }

    async fn look_beside_the_table(
        &mut self,
        client: &Client,
        names: &Names,
    ) -> Result<(), LookError> {
        let function = suffixed(&names.table, "_publish");
        let row = client
            .query_opt(FUNCTION, &[&names.schema, &function])
            .await?;
        self.function = row.map(|row| row.get(0));
        let view = suffixed(&names.table, "_status");
        let oid = self.table.as_ref().map(|table| table.oid);
        let row = client
            .query_opt(VIEW, &[&names.schema, &view, &oid])
            .await?;
        self.view = row.map(|row| View {
            comment: row.get("comment"),
            columns: row.get("columns"),
            is_of_table: row.get("is_of_table"),
        });
        if self.table.is_none() {
            // The sequence of a table that was renamed keeps its name.
            let wanted: Vec<String> = (0..10)
                .map(|number| match number {
                    0 => suffixed(&names.table, "_seq_seq"),
                    number => suffixed(&names.table, &format!("_seq_seq{number}")),
                })
                .collect();
            let row = client.query_one(FREE, &[&names.schema, &wanted]).await?;
            self.sequence = row.get(0);
        }
        Ok(())
    }

    async fn look_at_stream(&mut self, client: &Client, names: &Names) -> Result<(), LookError> {
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&names.publication, &names.schema, &names.table];
        let row = client.query_opt(PUBLICATION, &parameters).await?;
        self.publication = row.map(|row| Publication {
            has_table: row.get("has_table"),
            is_alone: row.get("is_alone"),
            is_claimed: false,
            is_plain: row.get("is_plain"),
            has_updates: row.get("pubupdate"),
        });
        let slot = "SELECT FROM pg_catalog.pg_replication_slots \
                    WHERE slot_name = $1 AND database = pg_catalog.current_database()";
        self.has_slot = client.query_opt(slot, &[&names.slot]).await?.is_some();
        let facts = Facts::read(client, &names.schema, &names.table).await?;
        self.has_claim = facts.has_noted(&names.slot);
        self.has_another_slot = facts.has_another_than(&names.slot);
        if let Some(publication) = &mut self.publication {
            publication.is_claimed = facts.has_claimed_publication(&names.publication)
                || owned::is_made_for_us(&facts, &names.publication);
        }
        Ok(())
    }
}

async fn grants(
    client: &Client,
    names: &Names,
    role: &str,
    table: Option<u32>,
) -> Result<Grants, LookError> {
    let exists = "SELECT FROM pg_catalog.pg_roles WHERE rolname = $1";
    if client.query_opt(exists, &[&role]).await?.is_none() {
        return Ok(Grants::default());
    }
    let view = suffixed(&names.table, "_status");
    let function = suffixed(&names.table, "_publish");
    let sent_at = names.columns.of("sent_at");
    let row = client
        .query_one(
            GRANTED,
            &[&role, &table, &names.schema, &view, &function, &sent_at],
        )
        .await?;
    Ok(Grants {
        role_exists: true,
        reads: row.get("reads"),
        reads_sequence: row.get("reads_sequence"),
        updates_sent_at: row.get("updates_sent_at"),
        deletes: row.get("deletes"),
        inserts: row.get("inserts"),
        executes: row.get("executes"),
        state: row.get("state"),
        status: row.get("status"),
    })
}

const STATE_TABLES: &str = "
    SELECT coalesce(array_agg(c.relname::text) FILTER (WHERE c.relname IS NOT NULL), '{}') AS tables,
           coalesce(array_agg(c.relname::text) FILTER (WHERE EXISTS (
               SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AND (c.relname <> 'kept' OR EXISTS (
               SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisprimary))), '{}') AS keyed,
           coalesce(bool_or(c.relname = 'kept' AND EXISTS (
               SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class k ON k.oid = i.indexrelid
               WHERE i.indrelid = c.oid AND k.relname = 'kept_by_state')), false) AS has_index,
           coalesce(bool_or(c.relname = 'outbox' AND EXISTS (
               SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'mark')), false) AS has_mark,
           coalesce(bool_and(pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                             AND (c.oid IS NULL OR pg_catalog.has_table_privilege(c.oid, 'SELECT'))), true) AS may_look,
           current_user::text AS role
    FROM pg_catalog.pg_namespace n
    LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
    WHERE n.nspname = 'outboxd'";

const FUNCTION: &str = "
    SELECT p.prosrc
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = $1 AND p.proname = $2
    ORDER BY p.oid LIMIT 1";

const VIEW: &str = "
    SELECT coalesce(pg_catalog.obj_description(c.oid, 'pg_class'), '') AS comment,
           coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '{}') AS columns,
           EXISTS (SELECT FROM pg_catalog.pg_rewrite r
                   JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
                   WHERE r.ev_class = c.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $3)
               AS is_of_table
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2";

const FREE: &str = "
    SELECT min(name) FROM unnest($2::text[]) AS name
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                      WHERE n.nspname = $1 AND c.relname = name)";

const PUBLICATION: &str = "
    SELECT p.puballtables OR t.has_table OR EXISTS (
               SELECT FROM pg_catalog.pg_publication_rel r
               JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE r.prpubid = p.oid AND n.nspname = $2 AND c.relname = $3) AS has_table,
           NOT p.puballtables AND t.tables <= 1 AS is_alone,
           p.pubinsert AND p.pubviaroot AND NOT (p.pubdelete OR p.pubtruncate) AS is_plain, p.pubupdate
    FROM pg_catalog.pg_publication p
    CROSS JOIN LATERAL (
        SELECT count(*) AS tables,
               coalesce(bool_or(t.schemaname = $2 AND t.tablename = $3), false) AS has_table
        FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname) t
    WHERE p.pubname = $1";

const MAY_CREATE_ROLE: &str =
    "SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user";

/// A list of privileges in one call would mean any of them; hence one call for each.
const GRANTED: &str = "
    SELECT coalesce(u.schema AND pg_catalog.has_table_privilege($1::name, $2::oid, 'SELECT'), false) AS reads,
           coalesce(u.schema AND pg_catalog.has_table_privilege($1::name, $2::oid, 'INSERT'), false) AS inserts,
           coalesce(pg_catalog.has_table_privilege($1::name, $2::oid, 'DELETE'), false) AS deletes,
           coalesce((SELECT pg_catalog.has_column_privilege($1::name, a.attrelid, a.attnum, 'UPDATE')
                     FROM pg_catalog.pg_attribute a WHERE a.attrelid = $2::oid AND a.attname = $6::text), false)
               AS updates_sent_at,
           coalesce((SELECT bool_and(pg_catalog.has_sequence_privilege($1::name, s.oid, 'SELECT'))
                     FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
                     WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
                       AND d.refobjid = $2::oid AND d.deptype IN ('a', 'i')), false) AS reads_sequence,
           coalesce((SELECT bool_and(pg_catalog.has_schema_privilege($1::name, n.oid, 'USAGE')
                                     AND pg_catalog.has_table_privilege($1::name, c.oid, 'SELECT')
                                     AND pg_catalog.has_table_privilege($1::name, c.oid, 'INSERT')
                                     AND pg_catalog.has_table_privilege($1::name, c.oid, 'UPDATE')
                                     AND pg_catalog.has_table_privilege($1::name, c.oid, 'DELETE'))
                     FROM pg_catalog.pg_namespace n
                     JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
                     WHERE n.nspname = 'outboxd'), false) AS state,
           coalesce((SELECT pg_catalog.has_table_privilege($1::name, c.oid, 'SELECT')
                     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                     WHERE n.nspname = $3 AND c.relname = $4), false) AS status,
           coalesce((SELECT bool_and(pg_catalog.has_function_privilege($1::name, p.oid, 'EXECUTE'))
                     FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                     WHERE n.nspname = $3 AND p.proname = $5), false) AS executes
    FROM (SELECT (SELECT pg_catalog.has_schema_privilege($1::name, n.oid, 'USAGE')
                  FROM pg_catalog.pg_namespace n WHERE n.nspname = $3) AS schema) u";
