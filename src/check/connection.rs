//! How the connection to PostgreSQL is secured, and whether it is PostgreSQL itself that answers.

use tokio_postgres::Client;

use super::Finding;
use super::compatibility::Incompatibility;
use crate::postgres::{Security, Verified};

const WHAT: &str = "connection";
/// Two of the settings that a session of ours asks for at its start.
const PASSED_ON: &str = "SELECT pg_catalog.current_setting('enable_seqscan') = 'off' AND pg_catalog.current_setting('jit') = 'off'";
const VERIFY: &str = "`?sslmode=verify-full&sslrootcert=/path/ca.pem` in the URL; see docs/security.md#tls-to-postgresql";

pub(super) fn finding(security: &Security) -> Finding {
    let detail = security.to_string();
    match security {
        Security::Local
        | Security::PlainText { is_loopback: true }
        | Security::Tls {
            verified: Verified::IssuerAndName | Verified::Issuer,
            ..
        } => Finding::ok(WHAT, detail),
        Security::PlainText { is_loopback: false }
        | Security::Tls {
            verified: Verified::Nothing,
            ..
        } => Finding::warning(WHAT, detail, VERIFY),
    }
}

/// Why this is no session with PostgreSQL itself; nothing where it is.
///
/// A pooler that takes the settings of a session's start and drops them says nothing of it: a look at them tells. One that
/// refuses them, or a replication connection, ends the session with an error.
pub(crate) async fn pooler(
    client: &Client,
) -> Result<Option<Incompatibility>, tokio_postgres::Error> {
    let is_passed_on: bool = client.query_one(PASSED_ON, &[]).await?.get(0);
    Ok((!is_passed_on).then(|| Incompatibility {
        text: "a pooler such as pgbouncer stands between: the settings that a session asks for do not reach PostgreSQL"
            .to_owned(),
        remedy: "name PostgreSQL's own address in source.url: a relay needs sessions that stay its own, and replication"
            .to_owned(),
    }))
}
