//! `migrate --adopt`: a person says that the table is the outbox, whatever it was before.

use tokio_postgres::Client;

use super::{MigrateError, Names};
use crate::postgres::catalog::{Table, inspect};
use crate::state::identity::{self, Evidence, Identity, IdentityVerdict, RowAt};

/// Records the identity as it is now and says what that means.
///
/// Where the numbers still are those that were sent (pg_upgrade, a dump restored with the state) the ledger
/// goes on. Where they are not, a new generation begins without a start decision: a number in the old ledger
/// would hide a row that was never sent.
pub(super) async fn adopt(client: &Client, names: &Names) -> Result<&'static str, MigrateError> {
    let table = inspect(client, &names.schema, &names.table, &names.columns).await?;
    let now = identity::read(client, &table).await?;
    let tail = identity::ledger_tail(client, &names.outbox()).await?;
    let evidence = identity::evidence(client, &table, names.mark, tail).await?;
    let verdict = identity::compare(names.mark, &now, &now, &evidence);
    if let IdentityVerdict::Halt { why, remedy } = verdict {
        if !numbers_began_again(&evidence) {
            return Err(MigrateError::NotAdoptable { why, remedy });
        }
        new_generation(client, names, &table, &now).await?;
        return Ok(
            "the numbers are not those that were sent: a new generation begins, and `source.start` \
                   says which of its rows to publish",
        );
    }
    identity::store(client, &names.outbox(), &now).await?;
    Ok("the numbers are those that were sent: the ledger goes on")
}

/// The sequence can be trusted, and it is the ledger that speaks of other rows.
fn numbers_began_again(evidence: &Evidence) -> bool {
    let Some(last_value) = evidence.last_value else {
        return false;
    };
    if evidence.highest_row.is_some_and(|row| row > last_value) {
        return false;
    }
    evidence
        .tail
        .is_some_and(|(last_seq, row)| row == RowAt::Other || last_value < last_seq)
}

async fn new_generation(
    client: &Client,
    names: &Names,
    table: &Table,
    now: &Identity,
) -> Result<(), MigrateError> {
    let failed = |error: tokio_postgres::Error| MigrateError::Generation {
        outbox: names.outbox(),
        source: error.into(),
    };
    let sequence = table.sequence().map(|sequence| sequence.filenode);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 7] = [
        &names.outbox(),
        &now.system_identifier,
        &now.timeline,
        &now.database,
        &now.table_oid,
        &now.table_filenodes,
        &sequence,
    ];
    client
        .execute(NEW_GENERATION, &values)
        .await
        .map(drop)
        .map_err(failed)
}

const NEW_GENERATION: &str = "
    WITH forgotten AS (DELETE FROM outboxd.skipped WHERE outbox = $1),
         -- Positions of another server say nothing of this one.
         unmarked AS (DELETE FROM outboxd.marked WHERE outbox = $1)
    UPDATE outboxd.outbox SET
        generation = generation + 1, start = NULL, caught_up = false, skipped = '{}', start_lsn = NULL,
        system_identifier = $2, timeline = $3, database = $4, table_oid = $5, table_filenodes = $6,
        sequence_filenode = $7, at = clock_timestamp()
    WHERE outbox = $1";
