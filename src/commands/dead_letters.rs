//! Dead letters, for people: rows that are kept whole and published no more until somebody says so.
//!
//! Reads the state tables and writes requests; the relay that holds the lease fulfils them.

mod text;

use serde::Serialize;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::commands::blocked::{BlockedError, Request, ask_release};
use crate::state::hold::{Asker, Requested};

pub(crate) use text::Lines;

/// Letters that one list shows at most.
pub(crate) const LIST_MAX: i64 = 1_000;

/// One dead letter, or what was one.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DeadLetter {
    pub id: i64,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub row_id: String,
    pub row_seq: Option<i64>,
    pub since: String,
    pub reason: String,
    pub error: String,
    pub attempts: i32,
    /// `dead`; `replay` where that was asked for; `replayed`, `discarded`.
    pub state: String,
    pub actor: Option<String>,
    pub note: Option<String>,
    pub at: String,
    /// Bytes that it takes in the database.
    pub bytes: i64,
    /// The entry of `outboxd blocked` that it waits with, where its whole aggregate became dead letters.
    pub blocked: Option<String>,
    /// Only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<Column>>,
    #[serde(skip)]
    blocked_key: Option<String>,
}

/// One column of a letter's row.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Column {
    pub name: String,
    /// `None` for SQL NULL; bytes that are no text as `\x…`.
    pub value: Option<String>,
}

/// Which letters a command is about.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    Ids(Vec<i64>),
    Aggregate { kind: String, id: String },
    All,
}

/// Why letters could not be shown, replayed or discarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LetterError {
    #[error("there is no dead letter {0}")]
    NotFound(i64),
    #[error("letter {id} was {state} already")]
    NotDead { id: i64, state: String },
    #[error("aggregate {0} has no dead letter")]
    NoneOf(String),
    #[error(
        "letter {id} follows letter {first} in its aggregate, which comes first: replay that one, and all go out in order"
    )]
    NotFirst { id: i64, first: i64 },
    #[error(transparent)]
    State(#[from] BlockedError),
}

/// What a person may ask about the dead letters of one outbox.
pub(crate) struct LetterTable<'a> {
    pub client: &'a Client,
    /// The name in the state tables.
    pub outbox: &'a str,
}

impl LetterTable<'_> {
    /// The dead letters, in the order in which they died; `history` adds those that were replayed or discarded.
    ///
    /// The oldest [`LIST_MAX`]; the number of all comes with them.
    pub(crate) async fn list(&self, history: bool) -> Result<(Vec<DeadLetter>, i64), LetterError> {
        let states = match history {
            true => vec!["dead", "replay", "replayed", "discarded"],
            false => vec!["dead", "replay"],
        };
        let only = "k.state = ANY ($2) AND (k.state <> 'replay' OR k.actor IS NOT NULL)";
        let letters = self.read(only, &[&self.outbox, &states]).await?;
        let sql = "SELECT count(*) FROM outboxd.kept k WHERE k.outbox = $1 AND k.state = ANY ($2) \
                   AND (k.state <> 'replay' OR k.actor IS NOT NULL)";
        let row = self.client.query_one(sql, &[&self.outbox, &states]).await;
        let row = row.map_err(BlockedError::sql("count the dead letters"))?;
        Ok((letters, row.get(0)))
    }

    /// One letter, whatever its state.
    pub(crate) async fn find(&self, id: i64) -> Result<DeadLetter, LetterError> {
        let only = "k.id = $2 AND k.state <> 'held'";
        let found = self.read(only, &[&self.outbox, &id]).await?;
        found.into_iter().next().ok_or(LetterError::NotFound(id))
    }

    /// One letter with its row.
    pub(crate) async fn open(&self, id: i64) -> Result<DeadLetter, LetterError> {
        let mut letter = self.find(id).await?;
        let sql = "SELECT columns, fields FROM outboxd.kept WHERE outbox = $1 AND id = $2";
        let row = self.client.query_one(sql, &[&self.outbox, &id]).await;
        let row = row.map_err(BlockedError::sql("read the dead letter"))?;
        let columns: Vec<String> = row.get::<_, Option<_>>(0).unwrap_or_default();
        let fields: Vec<Option<&[u8]>> = row.get::<_, Option<_>>(1).unwrap_or_default();
        let column = |(name, value): (String, Option<&[u8]>)| Column {
            name,
            value: value.map(text::readable),
        };
        letter.content = Some(columns.into_iter().zip(fields).map(column).collect());
        Ok(letter)
    }

    /// Asks for letters to be published again; of an aggregate that became dead letters whole, all of them.
    ///
    /// Errors: `NotFirst` for letters of such an aggregate without its first one.
    pub(crate) async fn replay(
        &self,
        which: &Which,
        asker: &Asker,
    ) -> Result<Requested, LetterError> {
        let letters = self.chosen(which).await?;
        let (mut keys, mut kept) = (Vec::new(), Vec::new());
        for letter in &letters {
            match &letter.blocked_key {
                Some(key) if keys.contains(key) => {}
                Some(key) => {
                    let first = self.first_of(key).await?;
                    if letters.iter().all(|letter| letter.id != first) {
                        return Err(LetterError::NotFirst {
                            id: letter.id,
                            first,
                        });
                    }
                    keys.push(key.clone());
                }
                None => kept.push(letter.id),
            }
        }
        self.set_state(&kept, "replay", asker).await?;
        let names: Vec<&str> = keys.iter().map(String::as_str).collect();
        ask_release(self.client, self.outbox, &names, Request::Retry, asker).await?;
        Ok(Requested { keys, kept })
    }

    /// Gives letters up for ever; returns them.
    pub(crate) async fn discard(
        &self,
        ids: &[i64],
        asker: &Asker,
    ) -> Result<Vec<DeadLetter>, LetterError> {
        let letters = self.chosen(&Which::Ids(ids.to_vec())).await?;
        self.set_state(ids, "discarded", asker).await?;
        Ok(letters)
    }

    /// The letters that a command is about: all of them dead, in their order.
    async fn chosen(&self, which: &Which) -> Result<Vec<DeadLetter>, LetterError> {
        let outbox = &self.outbox;
        match which {
            Which::All => self.read("k.state = 'dead'", &[outbox]).await,
            Which::Aggregate { kind, id } => {
                let only = "k.state = 'dead' AND k.aggregatetype = $2 AND k.aggregateid = $3";
                let letters = self.read(only, &[outbox, kind, id]).await?;
                match letters.is_empty() {
                    true => Err(LetterError::NoneOf(format!("{kind} {id}"))),
                    false => Ok(letters),
                }
            }
            Which::Ids(ids) => {
                let letters = self
                    .read("k.id = ANY ($2) AND k.state <> 'held'", &[outbox, ids])
                    .await?;
                let is_known = |id: &&i64| letters.iter().any(|letter| letter.id == **id);
                if let Some(id) = ids.iter().find(|id| !is_known(id)) {
                    return Err(LetterError::NotFound(*id));
                }
                match letters.iter().find(|letter| letter.state != "dead") {
                    Some(letter) => Err(LetterError::NotDead {
                        id: letter.id,
                        state: letter.state.clone(),
                    }),
                    None => Ok(letters),
                }
            }
        }
    }

    async fn first_of(&self, key: &str) -> Result<i64, LetterError> {
        let sql = "SELECT min(id) FROM outboxd.kept WHERE outbox = $1 AND blocked_key = $2 AND state = 'dead'";
        let row = self.client.query_one(sql, &[&self.outbox, &key]).await;
        let row = row.map_err(BlockedError::sql("read the dead letters"))?;
        Ok(row.get::<_, Option<i64>>(0).unwrap_or(0))
    }

    async fn set_state(&self, ids: &[i64], state: &str, asker: &Asker) -> Result<(), LetterError> {
        let sql = "UPDATE outboxd.kept SET state = $3, actor = $4, note = $5, at = clock_timestamp() \
                   WHERE outbox = $1 AND id = ANY ($2) AND state = 'dead'";
        let done = self
            .client
            .execute(
                sql,
                &[&self.outbox, &ids, &state, &asker.actor, &asker.note],
            )
            .await;
        done.map_err(BlockedError::sql("write down what is requested"))?;
        Ok(())
    }

    async fn read(
        &self,
        only: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<DeadLetter>, LetterError> {
        let sql = format!("{READ} WHERE k.outbox = $1 AND {only} ORDER BY k.id LIMIT {LIST_MAX}");
        let rows = self.client.query(&sql, values).await;
        let rows = rows.map_err(BlockedError::sql("read the dead letters"))?;
        Ok(rows.iter().map(DeadLetter::of).collect())
    }
}

impl DeadLetter {
    fn of(row: &Row) -> Self {
        let blocked_key: Option<String> = row.get("blocked_key");
        Self {
            id: row.get("id"),
            aggregate_type: row.get("aggregatetype"),
            aggregate_id: row.get("aggregateid"),
            row_id: row.get("row_id"),
            row_seq: row.get("seq"),
            since: row.get("since"),
            reason: row.get("reason"),
            error: row.get("error"),
            attempts: row.get("attempts"),
            state: row.get("state"),
            actor: row.get("actor"),
            note: row.get("note"),
            at: row.get("at"),
            bytes: row.get("bytes"),
            blocked: blocked_key.as_deref().map(crate::commands::blocked::short),
            content: None,
            blocked_key,
        }
    }
}

/// A letter of an aggregate that became dead letters whole waits with its entry.
const READ: &str = "
    SELECT k.id, k.aggregatetype, k.aggregateid, k.seq, k.row_id, k.reason, k.error, k.attempts, k.state, k.actor, k.note,
           coalesce(pg_column_size(k.fields), 0)::int8 AS bytes, b.key AS blocked_key,
           to_char(k.since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS since,
           to_char(k.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS at
    FROM outboxd.kept k LEFT JOIN outboxd.blocked b
      ON b.outbox = k.outbox AND b.key = k.blocked_key AND b.state <> 'released'";
