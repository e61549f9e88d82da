//! What keeps a relay from the connections that it needs.

use tokio_postgres::{Client, Row};

use crate::config::{Mark, Mode, SourceConfig};
use crate::postgres::compatibility::{Incompatibility, mode_name};

/// Why a relay has not the connections that it needs, in the words of `check`; nothing where no limit says so.
pub(crate) async fn room(
    client: &Client,
    source: &SourceConfig,
) -> Result<Option<Incompatibility>, tokio_postgres::Error> {
    let row = client.query_one(ROOM, &[]).await?;
    Ok(narrow(&row, source))
}

/// Our sessions that run already count for nothing; limits do not bind a superuser. Who else is connected is hidden from most
/// roles, and how many are is not.
pub(crate) const ROOM: &str = "
    SELECT CASE WHEN r.rolsuper OR r.rolconnlimit < 0 THEN NULL ELSE r.rolconnlimit::int8 END AS of_role,
           CASE WHEN r.rolsuper OR d.datconnlimit < 0 THEN NULL ELSE d.datconnlimit::int8 END AS of_database,
           pg_catalog.quote_ident(r.rolname) AS role, pg_catalog.quote_ident(d.datname) AS database,
           pg_catalog.current_setting('max_connections')::int8 AS most,
           pg_catalog.current_setting('max_connections')::int8
               - pg_catalog.current_setting('superuser_reserved_connections')::int8
               - coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int8
               - (SELECT sum(numbackends) FROM pg_catalog.pg_stat_database)::int8
               + (SELECT count(*) FROM pg_catalog.pg_stat_activity a
                  WHERE a.usename = current_user AND a.application_name LIKE 'outboxd %') AS free
    FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
    WHERE r.rolname = current_user AND d.datname = pg_catalog.current_database()";

pub(crate) fn narrow(row: &Row, source: &SourceConfig) -> Option<Incompatibility> {
    let kept = kept(source);
    let needed = kept + SPARE;
    let (role, database): (&str, &str) = (row.get("role"), row.get("database"));
    let limits: [(Option<i64>, String); 2] = [
        (row.get("of_role"), format!("ROLE {role}")),
        (row.get("of_database"), format!("DATABASE {database}")),
    ];
    let mut limits = limits.into_iter();
    let is_narrow =
        |(limit, whose)| Option::filter(limit, |limit| *limit < needed).map(|limit| (limit, whose));
    let (limit, whose) = limits.find_map(is_narrow)?;
    let mode = mode_name(source.mode);
    Some(Incompatibility {
        text: format!(
            "{whose} has CONNECTION LIMIT {limit}, and a relay needs {needed} connections: by {mode} it keeps {kept}, and \
             commands need one beside them"
        ),
        remedy: format!("ALTER {whose} CONNECTION LIMIT {needed};"),
    })
}

/// For commands beside it, and while a session follows another whose connections have not ended yet.
pub(crate) const SPARE: i64 = 1;

/// How many connections a relay keeps while it publishes.
///
/// Lease, marks and the source; by replication the watch over the slot, and with a mark the one over what the stream left out.
pub(crate) fn kept(source: &SourceConfig) -> i64 {
    let reading = match (source.mode, source.mark) {
        (Mode::Polling, _) => 3,
        (Mode::Replication, Mark::None) => 4,
        (Mode::Replication, _) => 5,
    };
    reading + i64::from(source.retention.is_some())
}
