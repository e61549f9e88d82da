//! Whether the server takes writes, and when their commits return.

use tokio_postgres::{Client, Row};

use super::{Finding, Report, unknown};
use crate::postgres::compatibility::Incompatibility;

const READ_ONLY: &str = "default_transaction_read_only";

/// Where a setting of a session comes from decides how it is changed; `sync_state` is hidden from most roles.
const WRITABLE: &str = "
    SELECT pg_catalog.pg_is_in_recovery() AS is_standby,
           pg_catalog.current_setting('default_transaction_read_only') = 'on' AS is_read_only,
           (SELECT source FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only') AS source,
           pg_catalog.quote_ident(current_user) AS role, pg_catalog.quote_ident(pg_catalog.current_database()) AS database,
           pg_catalog.current_setting('synchronous_standby_names') AS awaited,
           (SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) FROM pg_catalog.pg_stat_replication) AS answering,
           pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all";

pub(super) async fn look(client: &Client, report: &mut Report) {
    let row = match client.query_one(WRITABLE, &[]).await {
        Ok(row) => row,
        Err(error) => return report.push(unknown(READ_ONLY, error)),
    };
    if let Some((what, refusal)) = refusal(&row) {
        report.push(Finding::missing(what, refusal.text, refusal.remedy));
    }
    let sees = row.get("sees_all");
    report
        .findings
        .extend(standbys(row.get("awaited"), row.get("answering"), sees));
}

/// Why nothing can be written here, in the words of `check`; nothing where it can.
pub(crate) async fn obstacle(
    client: &Client,
) -> Result<Option<Incompatibility>, tokio_postgres::Error> {
    let row = client.query_one(WRITABLE, &[]).await?;
    Ok(refusal(&row).map(|(_, refusal)| refusal))
}

fn refusal(row: &Row) -> Option<(&'static str, Incompatibility)> {
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
fn read_only(source: &str, role: &str, database: &str) -> (&'static str, String) {
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

/// Every mark is a commit, and waits as every other one does.
fn standbys(awaited: &str, answering: i64, sees_all: bool) -> Option<Finding> {
    let what = "synchronous_standby_names";
    if awaited.is_empty() {
        return None;
    }
    if sees_all && answering == 0 {
        return Some(Finding::warning(
            what,
            format!(
                "'{awaited}', and none of them answers: every commit waits, those of marks and lease too"
            ),
            format!("start the standby, or ALTER SYSTEM SET {what} = ''; SELECT pg_reload_conf();"),
        ));
    }
    let detail = format!("'{awaited}': marks and lease wait for it with each commit");
    Some(Finding::ok(what, detail))
}

#[cfg(test)]
mod tests {
    use super::super::FindingOutcome;
    use super::*;

    #[test]
    fn a_setting_is_taken_away_where_it_was_made() {
        for (source, remedy) in [
            ("user", "ALTER ROLE r RESET"),
            ("database", "ALTER DATABASE d RESET"),
            ("database user", "ALTER ROLE r IN DATABASE d RESET"),
            ("configuration file", "ALTER SYSTEM SET"),
        ] {
            let (_, text) = read_only(source, "r", "d");
            assert!(text.starts_with(remedy), "{text}");
        }
    }

    #[test]
    fn standbys_that_do_not_answer_are_warned_of_where_that_is_seen() {
        assert_eq!(standbys("", 0, true), None);
        let outcome = |answering, sees_all| standbys("sb", answering, sees_all).unwrap().outcome;
        assert_eq!(outcome(0, true), FindingOutcome::Warning);
        assert_eq!(outcome(1, true), FindingOutcome::Ok);
        assert_eq!(outcome(0, false), FindingOutcome::Ok);
    }
}
