//! Whether a pooler stands between.

use tokio_postgres::Client;

use crate::postgres::compatibility::Incompatibility;

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

/// Two of the settings that a session of ours asks for at its start.
const PASSED_ON: &str = "SELECT pg_catalog.current_setting('enable_seqscan') = 'off' AND pg_catalog.current_setting('jit') = 'off'";
