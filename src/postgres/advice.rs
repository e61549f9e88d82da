//! What stands behind a server's error that says it to nobody who does not know it: poolers, read-only servers, limits. Pure.
//!
//! By SQLSTATE and routine, which are in no language; poolers speak English only.

use super::ServerError;

/// What no pooler passes on: a replication connection, and settings at the start of a session.
const POOLED: &str = "a pooler such as pgbouncer answers, and a relay needs PostgreSQL itself: name the server's own address in source.url";
const READ_ONLY: &str = "`default_transaction_read_only` is on for this role, database or server, or the server is a standby; the relay \
                         waits until it takes writes";
const CONNECTIONS: &str = "a relay needs 4 connections by polling, 6 by replication, and one more with `source.retention`: raise the limit \
                           (`max_connections`, or CONNECTION LIMIT of the role or the database)";
const ROW_SECURITY: &str = "policies would hide rows, which would never be sent: ALTER ROLE … BYPASSRLS for the relay's role";

/// The routine that refuses what a policy of row security would hide.
pub(super) const OF_POLICIES: &str = "check_enable_rls";

/// What a person is to know besides the server's words.
pub(super) fn advice(error: &ServerError) -> Option<&'static str> {
    match error.sqlstate.as_str() {
        "08P01" if error.message.starts_with("unsupported startup parameter") => Some(POOLED),
        "0A000" if error.message.contains("RDS Proxy") => Some(POOLED),
        "25006" => Some(READ_ONLY),
        "42501" if error.routine == OF_POLICIES => Some(ROW_SECURITY),
        "53300" => Some(CONNECTIONS),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_an_error_is_said_with_it() {
        let said = |sqlstate, routine: &str, message| {
            let error = ServerError::new(sqlstate, message);
            let routine = routine.to_owned();
            ServerError { routine, ..error }.to_string()
        };
        for (sqlstate, routine, message, expected) in [
            (
                "08P01",
                "",
                "unsupported startup parameter: replication",
                "pgbouncer",
            ),
            (
                "08P01",
                "",
                "unsupported startup parameter in options: jit",
                "pgbouncer",
            ),
            (
                "0A000",
                "",
                "Feature not supported: RDS Proxy currently doesn’t support command-line options.",
                "pooler",
            ),
            (
                "25006",
                "PreventCommandIfReadOnly",
                "cannot execute UPDATE in a read-only transaction",
                "default_transaction_read_only",
            ),
            (
                "42501",
                "check_enable_rls",
                "query would be affected by row-level security policy",
                "BYPASSRLS",
            ),
            (
                "53300",
                "InitializeSessionUserId",
                "too many connections for role \"r\"",
                "6 by replication",
            ),
        ] {
            let text = said(sqlstate, routine, message);
            assert!(
                text.starts_with(message) && text.contains(expected),
                "{text}"
            );
        }
        let other = said("08P01", "ProcessStartupPacket", "invalid startup packet");
        assert_eq!(other, "invalid startup packet (SQLSTATE 08P01)");
    }
}
