//! The identity of a table's numbers: whether what was learned about them still holds.
//!
//! Owns the stored identity and the verdict on it, which is pure. Never changes the table or its sequence.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::config::Mark;
use crate::postgres::PostgresError;
use crate::postgres::catalog::{Table, qualified};
use crate::row::{Lsn, RowId};

/// What the numbers of an outbox belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub system_identifier: String,
    pub timeline: i32,
    pub database: String,
    pub table_oid: u32,
    /// Of every table that holds rows, sorted.
    pub table_filenodes: Vec<u32>,
    /// `None` for a table without `seq`, or without a sequence behind it.
    pub sequence_filenode: Option<u32>,
}

/// How far one history of a server was seen to be on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHistory {
    pub system_identifier: String,
    pub timeline: i32,
    /// A position that was flushed, or streamed, which is the same.
    pub flushed: Lsn,
}

/// What became of the history that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    /// It goes on, or it is another system's, which [`compare`] judges.
    Continues,
    /// A standby was promoted; so many bytes that were seen are not in its history, as far as its end tells.
    Promoted { lacks_bytes: u64 },
    /// The server has less than it had: it was restored from a backup, or it is the primary from before a failover.
    Rewound { bytes: u64 },
}

/// A server that crashed may have discarded the beginning of a record whose first pages were on disk.
const DISCARDED_BYTES_MAX: u64 = 64 << 10;

impl ServerHistory {
    /// Whether both are of one history.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.system_identifier == other.system_identifier && self.timeline == other.timeline
    }

    /// Judges the server as it is now by what was seen of it.
    pub(crate) fn judge(&self, now: &Self) -> History {
        if self.system_identifier != now.system_identifier {
            return History::Continues;
        }
        let bytes = self.flushed.0.saturating_sub(now.flushed.0);
        if now.timeline > self.timeline {
            return History::Promoted { lacks_bytes: bytes };
        }
        if now.timeline < self.timeline || bytes > DISCARDED_BYTES_MAX {
            return History::Rewound { bytes };
        }
        History::Continues
    }
}

/// What stands in the table at the number that the ledger recorded last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowAt {
    /// The row with the recorded id.
    Same,
    /// A row with another id.
    Other,
    /// No row.
    Gone,
}

/// What table, sequence and ledger say of the numbers now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// The last number that the ledger recorded and what stands there; `None` while it recorded nothing.
    pub tail: Option<(i64, RowAt)>,
    /// The last number that the sequence gave, one below its start while it gave none; `None` if it cannot be read.
    pub last_value: Option<i64>,
    /// The highest number in the table.
    pub highest_row: Option<i64>,
}

/// What the identity allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IdentityVerdict {
    /// The numbers are the ones that were learned about. The caller records `now` where it differs
    /// from what is stored (a failover, a rewritten table, another partition).
    Same,
    /// The numbers began again: the ledger goes on in a new generation, with an alarm.
    NewGeneration { why: String },
    /// Nothing may be published until a person has decided.
    Halt { why: String, remedy: String },
}

/// What is asked of an outbox before anything is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It stands where it stood: system, database, timeline, table.
    Place,
    /// Its sequence's last value can be read, and no row stands above it.
    Sequence,
    /// The row that was sent last still has its number.
    Tail,
}

impl Rule {
    /// Whether a mark rests on the rule: only the ledger speaks of rows by their numbers.
    pub(crate) fn is_needed_for(self, mark: Mark) -> bool {
        match (self, mark) {
            (Self::Place, _) | (Self::Sequence | Self::Tail, Mark::Ledger) => true,
            (Self::Sequence | Self::Tail, Mark::SentAt | Mark::Delete | Mark::None) => false,
        }
    }
}

/// Judges the numbers by docs/design.md, "Identity of the numbers", as far as the mark rests on them.
pub(crate) fn compare(
    mark: Mark,
    stored: &Identity,
    now: &Identity,
    evidence: &Evidence,
) -> IdentityVerdict {
    if Rule::Place.is_needed_for(mark)
        && let Some(why) = another_place(stored, now)
    {
        return halt(why, ADOPT);
    }
    if now.sequence_filenode.is_none() {
        return IdentityVerdict::Same;
    }
    let by_sequence = Rule::Sequence
        .is_needed_for(mark)
        .then(|| sequence(evidence));
    let by_tail = || {
        Rule::Tail
            .is_needed_for(mark)
            .then(|| tail(stored, now, evidence))
    };
    let judged = by_sequence.flatten().or_else(|| by_tail().flatten());
    judged.unwrap_or(IdentityVerdict::Same)
}

/// What the sequence says against the numbers.
fn sequence(evidence: &Evidence) -> Option<IdentityVerdict> {
    let Some(last_value) = evidence.last_value else {
        return Some(halt(
            "the last value of the sequence behind `seq` cannot be read".to_owned(),
            "run `outboxd migrate` as the table's owner: it grants SELECT on the sequence",
        ));
    };
    let row = evidence.highest_row.filter(|row| *row > last_value)?;
    Some(halt(
        format!(
            "the table holds number {row} and its sequence has given no more than {last_value}"
        ),
        "where an application draws the numbers, source.mark = \"sent_at\" does not rest on them; else set the \
         sequence to the table's highest number with setval, then start again",
    ))
}

/// What the row that was sent last says against the numbers.
fn tail(stored: &Identity, now: &Identity, evidence: &Evidence) -> Option<IdentityVerdict> {
    let (last_seq, row) = evidence.tail?;
    let verdict = match row {
        RowAt::Gone | RowAt::Other if began_again(stored, now) => IdentityVerdict::NewGeneration {
            why: "table and sequence have new files: the table was truncated with RESTART IDENTITY"
                .to_owned(),
        },
        RowAt::Other => halt(
            format!("another row stands at number {last_seq}, which was the last one sent"),
            ADOPT,
        ),
        RowAt::Same | RowAt::Gone => {
            let last_value = evidence.last_value.filter(|value| *value < last_seq)?;
            halt(
                format!(
                    "the sequence stands at {last_value} and number {last_seq} was sent before: it was set back"
                ),
                ADOPT,
            )
        }
    };
    Some(verdict)
}

const ADOPT: &str = "`outboxd migrate --adopt` takes the table as it is now; where its numbers differ from what \
                     was sent, `source.start` then says which of its rows to publish";

fn halt(why: String, remedy: &str) -> IdentityVerdict {
    IdentityVerdict::Halt {
        why,
        remedy: remedy.to_owned(),
    }
}

fn another_place(stored: &Identity, now: &Identity) -> Option<String> {
    if stored.system_identifier != now.system_identifier {
        let (was, is) = (&stored.system_identifier, &now.system_identifier);
        return Some(format!(
            "this is PostgreSQL system {is}, and the numbers were learned on {was}"
        ));
    }
    if stored.database != now.database {
        let (was, is) = (&stored.database, &now.database);
        return Some(format!(
            "this is database `{is}`, and the numbers were learned in `{was}`"
        ));
    }
    if now.timeline < stored.timeline {
        let (was, is) = (stored.timeline, now.timeline);
        return Some(format!(
            "this is timeline {is}, and the numbers were learned on timeline {was}: an older copy of the server"
        ));
    }
    if stored.table_oid != now.table_oid {
        let (was, is) = (stored.table_oid, now.table_oid);
        return Some(format!(
            "the table has oid {is}, and the numbers were learned of the one with oid {was}"
        ));
    }
    None
}

/// Only TRUNCATE … RESTART IDENTITY gives both the table and the sequence new files.
pub(crate) fn began_again(stored: &Identity, now: &Identity) -> bool {
    let kept = now
        .table_filenodes
        .iter()
        .any(|filenode| stored.table_filenodes.contains(filenode));
    !kept && stored.sequence_filenode != now.sequence_filenode
}

/// Why the identity could not be read or recorded.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the identity of the numbers of `{outbox}`")]
pub struct IdentityError {
    action: &'static str,
    outbox: String,
    #[source]
    source: PostgresError,
}

impl IdentityError {
    fn while_trying(
        action: &'static str,
        outbox: &str,
    ) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let outbox = outbox.to_owned();
        move |error| Self {
            action,
            outbox,
            source: error.into(),
        }
    }
}

/// Reads the identity as it is now, on a primary; `table` must have been inspected on the same connection.
///
/// Every role may: `pg_control_system` and `pg_walfile_name` are executable by PUBLIC (14 to 18).
/// Cancel-safe: yes.
pub(crate) async fn read(client: &Client, table: &Table) -> Result<Identity, IdentityError> {
    let row = client
        .query_one(READ, &[])
        .await
        .map_err(IdentityError::while_trying("read", &table.layout.outbox()))?;
    Ok(Identity {
        system_identifier: row.get("system_identifier"),
        timeline: row.get("timeline"),
        database: row.get("database"),
        table_oid: table.oid,
        table_filenodes: table.filenodes(),
        sequence_filenode: table.sequence().map(|sequence| sequence.filenode),
    })
}

/// Reads how far the server's history is on disk.
///
/// Cancel-safe: yes.
pub(crate) async fn history(client: &Client, outbox: &str) -> Result<ServerHistory, IdentityError> {
    let row = client
        .query_one(HISTORY, &[])
        .await
        .map_err(IdentityError::while_trying(
            "read the server's place for",
            outbox,
        ))?;
    let flushed: PgLsn = row.get("flushed");
    Ok(ServerHistory {
        system_identifier: row.get("system_identifier"),
        timeline: row.get("timeline"),
        flushed: Lsn(flushed.into()),
    })
}

/// Loads the identity that was recorded for an outbox, `None` if there is none yet.
pub(crate) async fn load(client: &Client, outbox: &str) -> Result<Option<Identity>, IdentityError> {
    let row = client
        .query_opt(LOAD, &[&outbox])
        .await
        .map_err(IdentityError::while_trying("load", outbox))?;
    Ok(row.map(|row| Identity {
        system_identifier: row.get("system_identifier"),
        timeline: row.get("timeline"),
        database: row.get("database"),
        table_oid: row.get("table_oid"),
        table_filenodes: row.get("table_filenodes"),
        sequence_filenode: row.get("sequence_filenode"),
    }))
}

/// Tells whether the table of an identity stands, under whatever name.
///
/// Cancel-safe: yes.
pub(crate) async fn stands(client: &Client, identity: &Identity) -> Result<bool, IdentityError> {
    let sql = "SELECT FROM pg_catalog.pg_class WHERE oid = $1";
    let row = client.query_opt(sql, &[&identity.table_oid]).await;
    let failed = IdentityError::while_trying("look for the table of", "the recorded oid");
    Ok(row.map_err(failed)?.is_some())
}

/// Records the identity of an outbox, beside what else is known of it.
pub(crate) async fn store(
    client: &Client,
    outbox: &str,
    identity: &Identity,
) -> Result<(), IdentityError> {
    let Identity {
        system_identifier,
        timeline,
        database,
        table_oid,
        table_filenodes,
        sequence_filenode,
    } = identity;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 7] = [
        &outbox,
        system_identifier,
        timeline,
        database,
        table_oid,
        table_filenodes,
        sequence_filenode,
    ];
    let recorded = client.execute(STORE, &values).await;
    recorded
        .map(drop)
        .map_err(IdentityError::while_trying("record", outbox))
}

/// Reads the highest number that the ledger recorded in the present generation, with its row's id.
///
/// Cancel-safe: yes.
pub(crate) async fn ledger_tail(
    client: &Client,
    outbox: &str,
) -> Result<Option<(i64, RowId)>, IdentityError> {
    let row = client
        .query_opt(TAIL, &[&outbox])
        .await
        .map_err(IdentityError::while_trying("read the ledger for", outbox))?;
    Ok(row.map(|row| {
        (
            row.get(0),
            RowId::from_text(row.get::<_, &str>(1).as_bytes()),
        )
    }))
}

/// Reads what table and sequence say now of what the mark rests on; `tail` is the ledger's last number with its row's id.
///
/// The sequence is read after the highest row: a row that is seen has drawn its number before.
/// Cancel-safe: yes.
pub(crate) async fn evidence(
    client: &Client,
    table: &Table,
    mark: Mark,
    tail: Option<(i64, RowId)>,
) -> Result<Evidence, IdentityError> {
    if table.layout.seq.is_none() || !Rule::Sequence.is_needed_for(mark) {
        return Ok(Evidence::default());
    }
    gather(client, table, tail)
        .await
        .map_err(IdentityError::while_trying("check", &table.layout.outbox()))
}

async fn gather(
    client: &Client,
    table: &Table,
    tail: Option<(i64, RowId)>,
) -> Result<Evidence, tokio_postgres::Error> {
    let name = qualified(&table.layout.schema, &table.layout.table);
    let seq = table.layout.names.sql("seq");
    let mut evidence = Evidence::default();
    if let Some((last_seq, id)) = tail {
        let text = table.layout.text_of(table.layout.id);
        let sql = format!("SELECT {text} FROM {name} AS o WHERE o.{seq} = $1::int8 LIMIT 1");
        let row = client.query_opt(&sql, &[&last_seq]).await?;
        let found = row.map(|row| {
            row.get::<_, Option<&str>>(0)
                .map(|text| RowId::from_text(text.as_bytes()))
        });
        let at = match found {
            None => RowAt::Gone,
            Some(found) if found.as_ref() == Some(&id) => RowAt::Same,
            Some(_) => RowAt::Other,
        };
        evidence.tail = Some((last_seq, at));
    }
    let highest = client
        .query_one(&format!("SELECT max({seq})::int8 FROM {name}"), &[])
        .await?;
    evidence.highest_row = highest.get(0);
    evidence.last_value = last_value(client, table).await?;
    Ok(evidence)
}

/// The last number that the table's sequence gave, one below its start while it gave none.
async fn last_value(client: &Client, table: &Table) -> Result<Option<i64>, tokio_postgres::Error> {
    let Some(sequence) = table.sequence() else {
        return Ok(None);
    };
    let may = "SELECT pg_catalog.has_sequence_privilege($1::oid, 'SELECT')";
    let may = client.query_one(may, &[&sequence.oid]).await?;
    if !may.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = format!(
        "SELECT CASE WHEN is_called OR last_value = '{}' THEN last_value ELSE last_value - 1 END FROM {}",
        i64::MIN,
        sequence.name
    );
    Ok(Some(client.query_one(&sql, &[]).await?.get(0)))
}

const READ: &str = "
    SELECT c.system_identifier::text,
           ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int4
               AS timeline,
           pg_catalog.current_database()::text AS database
    FROM pg_catalog.pg_control_system() c";

const HISTORY: &str = "
    SELECT c.system_identifier::text,
           ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int4
               AS timeline,
           pg_catalog.pg_current_wal_flush_lsn() AS flushed
    FROM pg_catalog.pg_control_system() c";

const LOAD: &str = "
    SELECT system_identifier, timeline, database, table_oid, table_filenodes, sequence_filenode
    FROM outboxd.outbox
    WHERE outbox = $1 AND system_identifier IS NOT NULL AND timeline IS NOT NULL AND database IS NOT NULL
      AND table_oid IS NOT NULL AND table_filenodes IS NOT NULL";

const STORE: &str = "
    INSERT INTO outboxd.outbox
        (outbox, system_identifier, timeline, database, table_oid, table_filenodes, sequence_filenode)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (outbox) DO UPDATE SET
        system_identifier = excluded.system_identifier, timeline = excluded.timeline,
        database = excluded.database, table_oid = excluded.table_oid,
        table_filenodes = excluded.table_filenodes, sequence_filenode = excluded.sequence_filenode,
        at = clock_timestamp()";

const TAIL: &str = "
    SELECT l.last_seq, l.last_id
    FROM outboxd.ledger l JOIN outboxd.outbox b ON b.outbox = l.outbox AND b.generation = l.generation
    WHERE l.outbox = $1
    ORDER BY l.last_seq DESC LIMIT 1";

#[cfg(test)]
mod tests;
