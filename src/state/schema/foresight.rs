//! What would stop a migration half-way: rights that are missing and objects that stand in the way, asked before its first
//! step. Reads catalogs only.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::{Client, Row};

use super::fragment::state_tables;
use super::{Names, Part, Step, StepState};
use crate::postgres::catalog::{qualified, suffixed};
use crate::postgres::compatibility::Incompatibility;

/// Everything that keeps a step that is needed from being done; nothing where each can.
///
/// Who may not grant is told by what PostgreSQL did with each grant, and a slot that this role may not make is the relay's.
/// Cancel-safe: yes.
pub(super) async fn obstacles(
    client: &Client,
    names: &Names,
    steps: &[Step],
) -> Result<Vec<Incompatibility>, tokio_postgres::Error> {
    let is_needed = |part: Part| {
        let mut needed = steps.iter().filter(|step| step.state == StepState::Needed);
        needed.any(|step| step.part == part)
    };
    let rights = client
        .query_one(RIGHTS, &[&names.schema, &names.table])
        .await?;
    let mut found = Found {
        role: rights.get("role"),
        obstacles: Vec::new(),
    };
    let makes_view = is_needed(Part::View);
    let makes_publication = is_needed(Part::Publication);
    if is_needed(Part::State) || makes_publication {
        found.may_create_in_database(&rights);
    }
    if is_needed(Part::State) {
        found.may_make_state(&rights);
        let tables: Vec<&str> = state_tables().collect();
        for row in client.query(STATE, &[&tables]).await? {
            found.state_table(&row);
        }
    }
    if is_needed(Part::Table) || makes_view || is_needed(Part::Function) {
        found.may_create_in_schema(&rights, &names.schema);
    }
    if is_needed(Part::Table) {
        let row = client
            .query_opt(TYPE, &[&names.schema, &names.table])
            .await?;
        found.obstacles.extend(row.map(|_| taken_by_type(names)));
    }
    if makes_publication {
        found.owns(
            "table",
            rights.get("table_owner"),
            &qualified(&names.schema, &names.table),
        );
        let row = client.query_opt(PUBLICATION, &[&names.publication]).await?;
        let owner = row.and_then(|row| row.get(0));
        found.owns("publication", owner, &escape_identifier(&names.publication));
    }
    if makes_view {
        let view = suffixed(&names.table, "_status");
        let row = client.query_opt(OWNER, &[&names.schema, &view]).await?;
        let owner = row.and_then(|row| row.get(0));
        found.owns("view", owner, &qualified(&names.schema, &view));
    }
    if is_needed(Part::Function) {
        let name = suffixed(&names.table, "_publish");
        let row = client.query_opt(FUNCTION, &[&names.schema, &name]).await?;
        found.function(row.as_ref(), &qualified(&names.schema, &name));
    }
    for role in [&names.relay_role, &names.application_role]
        .into_iter()
        .flatten()
    {
        let exists = "SELECT FROM pg_catalog.pg_roles WHERE rolname = $1";
        if client.query_opt(exists, &[role]).await?.is_none() {
            found.obstacles.push(no_role(role));
        }
    }
    Ok(found.obstacles)
}

struct Found {
    role: String,
    obstacles: Vec<Incompatibility>,
}

impl Found {
    fn add(&mut self, text: String, remedy: String) {
        self.obstacles.push(Incompatibility { text, remedy });
    }

    fn may_create_in_database(&mut self, rights: &Row) {
        if !rights.get::<_, bool>("in_database") {
            let (database, role) = (rights.get::<_, &str>("database"), &self.role);
            let text = format!(
                "role `{role}` may not create schemas and publications in database `{database}`"
            );
            let (database, role) = (escape_identifier(database), escape_identifier(role));
            self.add(
                text,
                format!("GRANT CREATE ON DATABASE {database} TO {role};"),
            );
        }
    }

    fn may_make_state(&mut self, rights: &Row) {
        if rights.get::<_, Option<bool>>("in_state") == Some(false) {
            let text = format!(
                "role `{}` may not create tables in schema `outboxd`",
                self.role
            );
            let role = escape_identifier(&self.role);
            self.add(
                text,
                format!("GRANT USAGE, CREATE ON SCHEMA outboxd TO {role};"),
            );
        }
    }

    fn may_create_in_schema(&mut self, rights: &Row, schema: &str) {
        if rights.get::<_, Option<bool>>("in_schema") == Some(false) {
            let text = format!(
                "role `{}` may not create anything in schema `{schema}`",
                self.role
            );
            let (schema, role) = (escape_identifier(schema), escape_identifier(&self.role));
            self.add(
                text,
                format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};"),
            );
        }
    }

    /// A table of the state that is none, or that another role's is.
    fn state_table(&mut self, row: &Row) {
        let (name, kind): (&str, &str) = (row.get("relname"), row.get("kind"));
        if kind != "table" {
            self.add(
                format!(
                    "`outboxd.{name}` is a {kind}, and the relay's state needs a table of that name"
                ),
                format!(
                    "ALTER {} outboxd.{} SET SCHEMA public; -- schema `outboxd` is the relay's alone",
                    kind.to_uppercase(),
                    escape_identifier(name)
                ),
            );
            return;
        }
        let owner = row.get::<_, Option<String>>("owner");
        self.owns(
            "table",
            owner,
            &format!("outboxd.{}", escape_identifier(name)),
        );
    }

    /// Only an owner changes what stands; `owner` is another role, of which this one is no member.
    fn owns(&mut self, kind: &str, owner: Option<String>, name: &str) {
        let Some(owner) = owner else {
            return;
        };
        let text = format!(
            "the {kind} `{}` belongs to role `{owner}`, and only its owner may change it",
            name.replace('"', "")
        );
        let (owner, role) = (escape_identifier(&owner), escape_identifier(&self.role));
        let remedy = format!("GRANT {owner} TO {role}; -- or run `outboxd migrate` as that role");
        if self.obstacles.iter().all(|one| one.remedy != remedy) {
            self.add(text, remedy);
        }
    }

    fn function(&mut self, row: Option<&Row>, name: &str) {
        let Some(row) = row else {
            return;
        };
        if !row.get::<_, bool>("is_ours") {
            let signature: &str = row.get("signature");
            self.add(
                format!(
                    "the function `{signature}` stands already and gives something else than a uuid"
                ),
                format!("ALTER FUNCTION {signature} RENAME TO …; -- or DROP it"),
            );
            return;
        }
        self.owns("function", row.get("owner"), name);
    }
}

fn taken_by_type(names: &Names) -> Incompatibility {
    let name = qualified(&names.schema, &names.table);
    Incompatibility {
        text: format!(
            "a type is called `{}`, and a table is a type, too",
            names.outbox()
        ),
        remedy: format!(
            "ALTER TYPE {name} RENAME TO …; -- or name another table in `source.table`"
        ),
    }
}

fn no_role(role: &str) -> Incompatibility {
    Incompatibility {
        text: format!("role `{role}` does not exist, and rights are to be granted to it"),
        remedy: format!("CREATE ROLE {} LOGIN;", escape_identifier(role)),
    }
}

const RIGHTS: &str = "
    SELECT current_user::text AS role, pg_catalog.current_database()::text AS database,
           pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS in_database,
           (SELECT pg_catalog.has_schema_privilege(oid, 'USAGE') AND pg_catalog.has_schema_privilege(oid, 'CREATE')
            FROM pg_catalog.pg_namespace WHERE nspname = 'outboxd') AS in_state,
           (SELECT pg_catalog.has_schema_privilege(oid, 'USAGE') AND pg_catalog.has_schema_privilege(oid, 'CREATE')
            FROM pg_catalog.pg_namespace WHERE nspname = $1) AS in_schema,
           (SELECT pg_catalog.pg_get_userbyid(c.relowner)::text
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = $2 AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')) AS table_owner";

const STATE: &str = "
    SELECT c.relname::text, CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view'
               WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table'
               WHEN 'i' THEN 'index' ELSE 'type' END AS kind,
           CASE WHEN NOT pg_catalog.pg_has_role(c.relowner, 'USAGE') THEN pg_catalog.pg_get_userbyid(c.relowner)::text END AS owner
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'outboxd' AND c.relname = ANY ($1::text[])
    ORDER BY c.relname";

/// Types that belong to no table.
const TYPE: &str = "
    SELECT FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    WHERE n.nspname = $1 AND t.typname = $2";

const PUBLICATION: &str = "
    SELECT CASE WHEN NOT pg_catalog.pg_has_role(p.pubowner, 'USAGE') THEN pg_catalog.pg_get_userbyid(p.pubowner)::text END
    FROM pg_catalog.pg_publication p WHERE p.pubname = $1";

const OWNER: &str = "
    SELECT CASE WHEN NOT pg_catalog.pg_has_role(c.relowner, 'USAGE') THEN pg_catalog.pg_get_userbyid(c.relowner)::text END
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2";

/// The function of this name that takes what ours takes.
const FUNCTION: &str = "
    SELECT p.oid::regprocedure::text AS signature, p.prorettype = 'uuid'::regtype AND p.prokind = 'f' AS is_ours,
           CASE WHEN NOT pg_catalog.pg_has_role(p.proowner, 'USAGE') THEN pg_catalog.pg_get_userbyid(p.proowner)::text END AS owner
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = $1 AND p.proname = $2
      AND pg_catalog.oidvectortypes(p.proargtypes) = 'text, text, text, json, jsonb, text, text, bigint, text, text, text, \
text, timestamp with time zone, uuid'";
