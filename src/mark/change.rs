//! Another mark than before: what the former one recorded is carried over, or the change is refused.
//!
//! A mark knows nothing of what another one recorded. Where the table or the ledger tells which rows were sent, it is
//! entered into the new mark, under the lease and in bounded statements; where nothing tells it, a person decides.

mod carry;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;

use crate::config::{Mark, SourceConfig};
use crate::mark::ledger::LEASE;
use crate::mark::{FencingToken, MarkError};
use crate::postgres::catalog::Table;
use crate::postgres::compatibility::{Incompatibility, mark_name, mode_name};

pub use carry::{Carried, CarryError, carry};

/// What follows from the mark that is recorded and the one that is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is the same, or another relay's, which does not mark.
    Unchanged,
    /// It is to be recorded, and the new mark knows all it needs.
    Record,
    Carry(Carry),
    Refuse(Incompatibility),
}

/// What is entered into the new mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// `sent_at` of the rows whose numbers stand in the ledger.
    LedgerToSentAt,
    /// The numbers of the rows that carry `sent_at`.
    SentAtToLedger,
}

/// What the state knows of the mark before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    pub mark: Option<Mark>,
    pub mode: Option<String>,
    /// The slot that was read with it; `None` where the outbox was polled.
    pub slot: Option<String>,
    pub caught_up: bool,
}

/// What the table knows, asked for only where it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Whether any row stands.
    Rows,
    /// Whether a row stands that the ledger knows as sent.
    SentByLedger,
    /// The same, on a table with triggers that may keep a row as it is.
    SentByLedgerBehindTriggers,
    /// Whether a row stands that carries `sent_at`.
    SentByRow,
    /// Whether anything is blocked or held.
    Held,
}

/// Judges the change of an outbox from what is recorded to what is configured.
///
/// Cancel-safe: yes, it only reads.
pub async fn judge(
    client: &Client,
    outbox: &str,
    source: &SourceConfig,
    table: &Table,
) -> Result<Change, MarkError> {
    let before = before(client, outbox).await?;
    let Some(former) = before.mark else {
        return Ok(Change::Record);
    };
    if is_beside(&before, source) {
        return Ok(Change::Unchanged);
    }
    if former == source.mark {
        let is_same = before.mode.as_deref() == Some(mode_name(source.mode));
        return Ok(match is_same {
            true => Change::Unchanged,
            false => Change::Record,
        });
    }
    for (question, refusal) in conditions(former, source, &before, table) {
        if is_so(client, outbox, table, question).await? {
            return Ok(Change::Refuse(refusal));
        }
    }
    Ok(match (former, source.mark) {
        (Mark::Ledger, Mark::SentAt) => Change::Carry(Carry::LedgerToSentAt),
        (Mark::SentAt, Mark::Ledger) => Change::Carry(Carry::SentAtToLedger),
        _ => Change::Record,
    })
}

/// Without a mark a relay may read a table that another one marks, through a slot of its own.
fn is_beside(before: &Before, source: &SourceConfig) -> bool {
    let is_other = before
        .slot
        .as_ref()
        .is_some_and(|slot| *slot != source.replication.slot);
    source.mark == Mark::None && is_other
}

/// What must not be so, each with what is said if it is.
fn conditions(
    former: Mark,
    source: &SourceConfig,
    before: &Before,
    table: &Table,
) -> Vec<(Question, Incompatibility)> {
    let (name, from, to) = (table.name(), mark_name(former), mark_name(source.mark));
    let outbox = escape_literal(&table.layout.outbox())
        .trim_start()
        .to_owned();
    let refuse = |text: String, remedy: String| Incompatibility {
        text: format!("source.mark was \"{from}\" and is \"{to}\": {text}"),
        remedy: format!(
            "{}; or set source.mark = \"{from}\" again",
            remedy.trim_end_matches(';')
        ),
    };
    let sent_at = table.layout.names.plain_sql("sent_at");
    let mut conditions = Vec::new();
    if former == Mark::None || source.mark == Mark::None {
        let held = refuse(
            "rows are blocked or held, and what is known of them does not go along".to_owned(),
            "release or skip them first: `outboxd blocked list`".to_owned(),
        );
        conditions.push((Question::Held, held));
    }
    match (former, source.mark) {
        (Mark::None, _) => conditions.push((
            Question::Rows,
            refuse(
                "nothing says which of the rows that stand in the table were sent".to_owned(),
                format!(
                    "with \"none\" wait until nothing is left to send, stop, then: DELETE FROM {name}; \
                     UPDATE outboxd.outbox SET mark = NULL WHERE outbox = {outbox};"
                ),
            ),
        )),
        (Mark::Ledger, Mark::Delete) => conditions.push((
            Question::SentByLedger,
            refuse(
                "rows that were sent stand in the table, and with \"delete\" what stands was not sent".to_owned(),
                format!("delete them first: {}", delete_by_ledger(table)),
            ),
        )),
        (Mark::Ledger, Mark::SentAt) => conditions.push((
            Question::SentByLedgerBehindTriggers,
            refuse(
                "rows that were sent are to get their `sent_at`, and a trigger that runs before each UPDATE may keep them as \
                 they are: they would be sent again"
                    .to_owned(),
                format!(
                    "disable triggers while the relay starts: ALTER TABLE {name} DISABLE TRIGGER USER; \
                     and afterwards: ALTER TABLE {name} ENABLE TRIGGER USER;"
                ),
            ),
        )),
        (Mark::SentAt, Mark::Delete) => conditions.push((
            Question::SentByRow,
            refuse(
                "rows that were sent stand in the table, and with \"delete\" what stands was not sent".to_owned(),
                format!("delete them first: DELETE FROM {name} WHERE {sent_at} IS NOT NULL;"),
            ),
        )),
        (_, Mark::None) if !before.caught_up => {
            conditions.push((Question::Rows, never_caught_up(former)));
        }
        _ => {}
    }
    conditions
}

fn never_caught_up(former: Mark) -> Incompatibility {
    let from = mark_name(former);
    Incompatibility {
        text: format!(
            "source.mark was \"{from}\" and is \"none\": the slot has not taken over yet, and only it would know what was sent"
        ),
        remedy: format!(
            "run with source.mode = \"replication\" and source.mark = \"{from}\" until /status says publishing, then change it"
        ),
    }
}

fn delete_by_ledger(table: &Table) -> String {
    let (name, outbox) = (table.name(), table.layout.outbox());
    let (outbox, seq) = (escape_literal(&outbox), table.layout.names.plain_sql("seq"));
    format!(
        "DELETE FROM {name} o USING outboxd.outbox b, outboxd.ledger l WHERE b.outbox = {} AND l.outbox = b.outbox \
         AND l.generation = b.generation AND l.segment = floor(o.{seq} / 1000000.0) AND l.sent @> o.{seq}::int8;",
        outbox.trim_start()
    )
}

async fn before(client: &Client, outbox: &str) -> Result<Before, MarkError> {
    let sql = "SELECT mark, slot, caught_up, mode FROM outboxd.outbox WHERE outbox = $1";
    let row = client.query_opt(sql, &[&outbox]).await;
    let row = row.map_err(MarkError::sql("read the mark of before"))?;
    Ok(row.map_or_else(Before::default, |row| Before {
        mark: match row.get(0) {
            Some("ledger") => Some(Mark::Ledger),
            Some("sent_at") => Some(Mark::SentAt),
            Some("delete") => Some(Mark::Delete),
            Some("none") => Some(Mark::None),
            _ => None,
        },
        slot: row.get(1),
        caught_up: row.get(2),
        mode: row.get(3),
    }))
}

async fn is_so(
    client: &Client,
    outbox: &str,
    table: &Table,
    question: Question,
) -> Result<bool, MarkError> {
    let name = table.name();
    let (seq, sent_at) = (
        table.layout.names.sql("seq"),
        table.layout.names.sql("sent_at"),
    );
    let by_ledger = format!(
        "SELECT FROM outboxd.outbox b JOIN outboxd.ledger l USING (outbox, generation), \
         unnest(l.sent) AS sent (numbers) \
         WHERE b.outbox = $1 AND EXISTS (SELECT FROM {name} o \
         WHERE o.{seq} >= lower(sent.numbers) AND o.{seq} < upper(sent.numbers))"
    );
    let rows = match question {
        Question::Rows => format!("SELECT FROM {name} WHERE $1::text IS NOT NULL"),
        Question::SentByRow => {
            if table.layout.sent_at.is_none() {
                return Ok(false);
            }
            format!("SELECT FROM {name} WHERE {sent_at} IS NOT NULL AND $1::text IS NOT NULL")
        }
        Question::SentByLedger => by_ledger,
        Question::SentByLedgerBehindTriggers => {
            let tables: Vec<String> = std::iter::once(table.oid)
                .chain(table.leaves.iter().map(|leaf| leaf.oid))
                .map(|oid| oid.to_string())
                .collect();
            // Bits of tgtype: 1 row, 2 before, 16 update.
            format!(
                "{by_ledger} AND EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid IN ({}) \
                 AND t.tgtype & 3 = 3 AND t.tgtype & 16 <> 0 AND NOT t.tgisinternal AND t.tgenabled <> 'D')",
                tables.join(", ")
            )
        }
        Question::Held => "SELECT FROM outboxd.blocked WHERE state <> 'released' AND (outbox = $1 \
             OR left(outbox, length($1) + 1) = $1 || '#')"
            .to_owned(),
    };
    let row = client
        .query_one(&format!("SELECT EXISTS ({rows})"), &[&outbox])
        .await;
    Ok(row
        .map_err(MarkError::sql("look for rows that were sent"))?
        .get(0))
}

/// Records the mark and the mode, and forgets what only the former mark needed, for it would be out of date one day.
///
/// Dead letters are kept under the name of the lease, which holds the slot where nothing is marked: they go along.
/// Errors: `NotLeader` when the lease moved; then nothing was recorded.
pub async fn record(
    client: &Client,
    outbox: &str,
    token: &FencingToken,
    source: &SourceConfig,
) -> Result<(), MarkError> {
    let other_key = match source.mark {
        Mark::None => outbox.to_owned(),
        Mark::Ledger | Mark::SentAt | Mark::Delete => {
            format!("{outbox}#{}", source.replication.slot)
        }
    };
    let (mark, mode) = (mark_name(source.mark), mode_name(source.mode));
    let FencingToken { outbox: key, epoch } = token;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [key, epoch, &outbox, &mark, &mode, &other_key];
    let sql = format!("WITH {LEASE}, {RECORD}");
    let recorded = client.execute(&sql, &values).await;
    match recorded.map_err(MarkError::sql("record the mark"))? {
        0 => Err(MarkError::NotLeader {
            outbox: key.clone(),
        }),
        _ => Ok(()),
    }
}

const RECORD: &str = "
    ledger AS (DELETE FROM outboxd.ledger l USING lease WHERE l.outbox = $3 AND $4 <> 'ledger'),
    kept AS (UPDATE outboxd.kept k SET outbox = $1 FROM lease WHERE k.outbox = $6)
    INSERT INTO outboxd.outbox AS o (outbox, mark, mode) SELECT $3, $4, $5 FROM lease
    ON CONFLICT (outbox) DO UPDATE SET mark = excluded.mark, mode = excluded.mode";

#[cfg(test)]
mod tests;
