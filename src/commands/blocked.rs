//! What is blocked, for people: aggregates and topics none of whose rows is published, and the request to release them.
//!
//! Reads the state tables and writes requests; the relay that holds the lease fulfils them.

pub(crate) mod remedy;
pub(crate) mod text;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use serde::Serialize;
use tokio_postgres::{Client, Row};

use crate::config::Mark;
use crate::postgres::PostgresError;
use crate::row::Layout;
use crate::state::hold::Asker;

pub(crate) use text::Lines;

/// Characters of a key that people see and type.
const ID_CHARACTERS: usize = 8;
/// Rows counted in a table at most.
const ROWS_MAX: i64 = 100_000;

/// One aggregate or topic that is blocked, or was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Blocked {
    /// The first characters of `key`: enough to name it.
    pub id: String,
    pub key: String,
    /// `aggregate` or `topic`.
    pub kind: String,
    pub aggregate_type: Option<String>,
    pub aggregate_id: Option<String>,
    pub topic: Option<String>,
    pub since: String,
    /// A short name of what is wrong, and what is wrong.
    pub reason: String,
    pub error: String,
    pub attempts: i32,
    /// What becomes of the rows that follow: `block`, they wait; `follow`, they become dead letters.
    pub policy: String,
    /// `blocked`; `retry` or `skip` where that was asked for; `released`.
    pub state: String,
    /// Who asked last, and why.
    pub actor: Option<String>,
    pub note: Option<String>,
    /// When its state became what it is, or the last row was added.
    pub at: String,
    /// The first row, by its number and id.
    pub row_seq: Option<i64>,
    pub row_id: String,
    /// Rows that wait; `None` where the table can't say.
    pub rows_waiting: Option<i64>,
    /// Of these, rows of which a copy is kept, since they do not stand in the table.
    pub copies: i64,
    pub dead_letters: i64,
}

/// One entry with what a person needs next.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    pub blocked: Blocked,
    pub remedy: &'static str,
    /// Shows the row at fault.
    pub sql: Option<String>,
}

/// Which entries a command is about.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    /// Those of a key that begins so.
    Id(String),
    All,
}

/// What is requested of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Publish the first row and what waits behind it.
    Retry,
    /// Give the first row up for ever and publish what waits behind it.
    Skip,
}

/// Why the question could not be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockedError {
    #[error("nothing blocked has the id `{0}`")]
    NotFound(String),
    #[error("`{id}` is the beginning of several ids: {}", keys.join(", "))]
    Ambiguous { id: String, keys: Vec<String> },
    #[error("{0} is a topic: its rows were not rejected and can't be skipped")]
    IsTopic(String),
    #[error("{0} was released already")]
    IsReleased(String),
    #[error("cannot {what}")]
    Sql {
        what: &'static str,
        #[source]
        source: PostgresError,
    },
}

impl BlockedError {
    pub(crate) fn sql(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Sql {
            what,
            source: source.into(),
        }
    }
}

/// What a person may ask about the blocked parts of one outbox.
pub(crate) struct BlockedTable<'a> {
    pub client: &'a Client,
    /// The name in the state tables.
    pub outbox: &'a str,
    pub mark: Mark,
    /// `None` where the table could not be read: then nothing is counted in it.
    pub layout: Option<&'a Layout>,
}

impl BlockedTable<'_> {
    /// What is blocked now, oldest first; `history` adds what was released.
    pub(crate) async fn list(&self, history: bool) -> Result<Vec<Blocked>, BlockedError> {
        let rows = self.client.query(LIST, &[&self.outbox, &history]).await;
        let rows = rows.map_err(BlockedError::sql("read what is blocked"))?;
        let mut list: Vec<Blocked> = rows.iter().map(Blocked::of).collect();
        self.count_in_table(&mut list).await?;
        Ok(list)
    }

    /// The one entry whose key begins so, whatever its state.
    pub(crate) async fn find(&self, id: &str) -> Result<Blocked, BlockedError> {
        let mut found = self.list(true).await?;
        found.retain(|entry| entry.key.starts_with(id));
        if found.len() > 1 {
            let keys = found.into_iter().map(|entry| entry.key).collect();
            let id = id.to_owned();
            return Err(BlockedError::Ambiguous { id, keys });
        }
        let entry = found.pop().filter(|_| !id.is_empty());
        entry.ok_or_else(|| BlockedError::NotFound(id.to_owned()))
    }

    /// The entry, what mends it and the statement that shows its first row.
    pub(crate) async fn show(&self, id: &str) -> Result<Shown, BlockedError> {
        let blocked = self.find(id).await?;
        let statement = |layout: &Layout| {
            let column = escape_identifier(&layout.columns[layout.id].name);
            let (table, id) = (layout.sql_name(), escape_literal(&blocked.row_id));
            format!("SELECT * FROM {table} WHERE {column} = {id}")
        };
        Ok(Shown {
            remedy: blocked.remedy(),
            sql: self.layout.map(statement),
            blocked,
        })
    }

    /// Writes the request, and returns the entries that it is about.
    pub(crate) async fn request(
        &self,
        which: &Which,
        request: Request,
        asker: &Asker,
    ) -> Result<Vec<Blocked>, BlockedError> {
        let entries = match which {
            Which::All => self.list(false).await?,
            Which::Id(id) => vec![self.find(id).await?],
        };
        for entry in &entries {
            let name = entry.name();
            match entry.state.as_str() {
                "released" => return Err(BlockedError::IsReleased(name)),
                _ if request == Request::Skip && entry.topic.is_some() => {
                    return Err(BlockedError::IsTopic(name));
                }
                _ => {}
            }
        }
        let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        ask_release(self.client, self.outbox, &keys, request, asker).await?;
        Ok(entries)
    }

    /// Rows of a table without `seq` have no numbers: they are counted where they stand.
    async fn count_in_table(&self, list: &mut [Blocked]) -> Result<(), BlockedError> {
        let Some(layout) = self.layout.filter(|layout| layout.seq.is_none()) else {
            return Ok(());
        };
        if self.mark == Mark::None || list.is_empty() {
            return Ok(());
        }
        let rows = self.client.query(&count_sql(layout), &[&self.outbox]).await;
        let rows = rows.map_err(BlockedError::sql("count the rows that wait"))?;
        for entry in list {
            let row = rows.iter().find(|row| row.get::<_, &str>(0) == entry.key);
            let in_table = row.map_or(0, |row| row.get::<_, i64>(1));
            let is_counted = entry.kind == "aggregate" && entry.state != "released";
            entry.rows_waiting = is_counted.then_some(entry.copies + in_table);
        }
        Ok(())
    }
}

impl Blocked {
    fn of(row: &Row) -> Self {
        let key: String = row.get("key");
        Self {
            id: short(&key),
            key,
            kind: row.get("kind"),
            aggregate_type: row.get("aggregatetype"),
            aggregate_id: row.get("aggregateid"),
            topic: row.get("topic"),
            since: row.get("since"),
            reason: row.get("reason"),
            error: row.get("error"),
            attempts: row.get("attempts"),
            policy: row.get("policy"),
            state: row.get("state"),
            actor: row.get("actor"),
            note: row.get("note"),
            at: row.get("at"),
            row_seq: row.get("row_seq"),
            row_id: row.get("row_id"),
            rows_waiting: Some(row.get::<_, i64>("numbers") + row.get::<_, i64>("unnumbered")),
            copies: row.get("copies"),
            dead_letters: row.get("dead_letters"),
        }
    }

    /// What it is, as people call it.
    pub(crate) fn name(&self) -> String {
        match &self.topic {
            Some(topic) => format!("topic {}", text::plain(topic)),
            None => text::aggregate(&self.aggregate_type, &self.aggregate_id),
        }
    }
}

/// The beginning of a key, which names its entry.
pub(crate) fn short(key: &str) -> String {
    key.chars().take(ID_CHARACTERS).collect()
}

/// Writes the request for these entries.
pub(crate) async fn ask_release(
    client: &Client,
    outbox: &str,
    keys: &[&str],
    request: Request,
    asker: &Asker,
) -> Result<(), BlockedError> {
    let sql = "UPDATE outboxd.blocked SET state = $3, actor = $4, note = $5, at = clock_timestamp() \
               WHERE outbox = $1 AND key = ANY ($2) AND state <> 'released'";
    let state = match request {
        Request::Retry => "retry",
        Request::Skip => "skip",
    };
    let done = client
        .execute(sql, &[&outbox, &keys, &state, &asker.actor, &asker.note])
        .await;
    done.map(drop)
        .map_err(BlockedError::sql("ask for the release"))
}

/// The rows of each blocked aggregate that stand in the table and were not sent.
fn count_sql(layout: &Layout) -> String {
    let unsent = match layout.sent_at {
        Some(_) => format!("o.{} IS NULL", layout.names.sql("sent_at")),
        None => "true".to_owned(),
    };
    format!(
        "SELECT b.key, count(*) FROM outboxd.blocked b JOIN (SELECT jsonb_build_array({}, {})::text AS aggregate \
         FROM {} o WHERE {unsent} LIMIT {ROWS_MAX}) waiting \
         ON waiting.aggregate = jsonb_build_array(b.aggregatetype, b.aggregateid)::text \
         WHERE b.outbox = $1 AND b.kind = 'aggregate' AND b.state <> 'released' GROUP BY b.key",
        layout.text_of(layout.aggregate_type),
        layout.text_of(layout.aggregate_id),
        layout.sql_name(),
    )
}

const LIST: &str = "
    SELECT b.key, b.kind, b.aggregatetype, b.aggregateid, b.topic, b.reason, b.error, b.attempts, b.policy, b.state,
           b.actor, b.note, b.row_seq, b.row_id, (SELECT coalesce(sum(upper(n) - lower(n)), 0)::int8 FROM unnest(b.held) n) AS numbers,
           to_char(b.since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS since,
           to_char(b.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS at,
           coalesce(k.copies, 0) AS copies, coalesce(k.unnumbered, 0) AS unnumbered,
           coalesce(k.dead_letters, 0) AS dead_letters
    FROM outboxd.blocked b LEFT JOIN (
        SELECT blocked_key, count(*) FILTER (WHERE state = 'held') AS copies,
               count(*) FILTER (WHERE state = 'held' AND seq IS NULL) AS unnumbered,
               count(*) FILTER (WHERE state = 'dead') AS dead_letters
        FROM outboxd.kept WHERE outbox = $1 AND state IN ('held', 'dead') GROUP BY blocked_key) k ON k.blocked_key = b.key
    WHERE b.outbox = $1 AND ($2 OR b.state <> 'released') ORDER BY b.since, b.key";
