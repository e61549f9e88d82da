//! What stands between a relay and PostgreSQL, or leaves it too little room: refused before anything is looked at.

use super::OpenError;
use crate::commands::check;
use crate::config::SourceConfig;
use crate::postgres;
use crate::postgres::compatibility::Incompatibility;

/// Refuses a pooler, behind which sessions are not our own, and limits that leave too few of them.
pub(super) async fn refuse(
    session: &postgres::SqlConnection,
    source: &SourceConfig,
) -> Result<(), OpenError> {
    let look = async {
        match check::pooler(&session.client).await? {
            Some(refusal) => Ok(Some(refusal)),
            None => check::room_obstacle(&session.client, source).await,
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
