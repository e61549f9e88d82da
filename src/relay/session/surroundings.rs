//! What stands between a relay and PostgreSQL, or leaves it too little room: refused before anything is looked at.

use super::OpenError;
use crate::config::SourceConfig;
use crate::postgres;
use crate::postgres::compatibility::Incompatibility;
use crate::postgres::obstacles;

/// Refuses a pooler, behind which sessions are not our own, and limits that leave too few of them.
pub(super) async fn refuse(
    session: &postgres::SqlConnection,
    source: &SourceConfig,
) -> Result<(), OpenError> {
    let look = async {
        match obstacles::pooler(&session.client).await? {
            Some(refusal) => Ok(Some(refusal)),
            None => obstacles::room::room(&session.client, source).await,
        }
    };
    let found: Result<_, tokio_postgres::Error> = look.await;
    match found.map_err(|source| OpenError::Postgres {
        purpose: "its settings",
        source: source.into(),
    })? {
        Some(Incompatibility { text, remedy }) => Err(OpenError::Halt {
            reason: text,
            remedy,
        }),
        None => Ok(()),
    }
}
