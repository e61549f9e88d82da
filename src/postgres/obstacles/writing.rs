//! What keeps a session from writing.

use tokio_postgres::{Client, Row};

use crate::postgres::compatibility::Incompatibility;

pub(crate) const READ_ONLY: &str = "default_transaction_read_only";

/// Where a setting of a session comes from decides how it is changed; `sync_state` is hidden from most roles.
pub(crate) const WRITABLE: &str = "
    SELECT pg_catalog.pg_is_in_recovery() AS is_standby,
           pg_catalog.current_setting('default_transaction_read_only') = 'on' AS is_read_only,
           (SELECT source FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only') AS source,
           pg_catalog.quote_ident(current_user) AS role, pg_catalog.quote_ident(pg_catalog.current_database()) AS database,
           pg_catalog.current_setting('synchronous_standby_names') AS awaited,
           (SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) FROM pg_catalog.pg_stat_replication) AS answering,
           pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all";

/// Why nothing can be written here, in the words of `check`; nothing where it can.
pub(crate) async fn writing(
    client: &Client,
) -> Result<Option<Incompatibility>, tokio_postgres::Error> {
    let row = client.query_one(WRITABLE, &[]).await?;
    Ok(refusal(&row).map(|(_, refusal)| refusal))
}

pub(crate) fn refusal(row: &Row) -> Option<(&'static str, Incompatibility)> {
    if row.get("is_standby") {
        return Some((
            "primary",
            Incompatibility {
                text: "this server is a standby: nothing can be marked here".to_owned(),
                remedy: "name the primary in `source.url`".to_owned(),
            },
        ));
    }
    if !row.get::<_, bool>("is_read_only") {
        return None;
    }
    let source: Option<&str> = row.get("source");
    let (whose, remedy) = read_only(
        source.unwrap_or_default(),
        row.get("role"),
        row.get("database"),
    );
    let text = format!(
        "{READ_ONLY} is on, for the {whose}: no row can be marked in a read-only transaction, and the relay waits until \
         the server takes writes"
    );
    Some((READ_ONLY, Incompatibility { text, remedy }))
}

/// Whose setting it is, and the statement that takes it away. Source: PostgreSQL, view pg_settings, column source.
pub(crate) fn read_only(source: &str, role: &str, database: &str) -> (&'static str, String) {
    match source {
        "user" => ("role", format!("ALTER ROLE {role} RESET {READ_ONLY};")),
        "database" => (
            "database",
            format!("ALTER DATABASE {database} RESET {READ_ONLY};"),
        ),
        "database user" => (
            "role in this database",
            format!("ALTER ROLE {role} IN DATABASE {database} RESET {READ_ONLY};"),
        ),
        _ => (
            "server",
            format!(
                "ALTER SYSTEM SET {READ_ONLY} = off; SELECT pg_reload_conf(); -- unless it was set for a cutover, which ends it"
            ),
        ),
    }
}
