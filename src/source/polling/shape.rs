//! Whether the table still has the columns that the statements were written for.

use tokio_postgres::Statement;

use super::PollError;
use super::statement::prepare;
use crate::postgres::SqlConnection;
use crate::postgres::catalog::SHAPE;

pub(super) struct Shape {
    oid: u32,
    statement: Statement,
    expected: String,
}

impl Shape {
    pub(super) async fn prepare(
        session: &SqlConnection,
        oid: u32,
        expected: String,
    ) -> Result<Self, PollError> {
        Ok(Self {
            oid,
            statement: prepare(session, SHAPE).await?,
            expected,
        })
    }

    /// Vouches for rows that were read before: their columns were what they are now, and what they were expected to be.
    ///
    /// Errors: `TableChanged`; the rows may have been read in the wrong way, a number as text, say.
    pub(super) async fn check(&self, session: &SqlConnection) -> Result<(), PollError> {
        let row = session
            .client
            .query_one(&self.statement, &[&self.oid])
            .await;
        let row = PollError::check(session, "read the table's columns", row).await?;
        let found: Option<&str> = row.get(0);
        if found == Some(&self.expected) {
            Ok(())
        } else {
            Err(PollError::TableChanged)
        }
    }
}
