//! Recording rows that were put aside.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::ENTRY_KEY;
use crate::core::{Aside, Fate, Followers, Held};
use crate::mark::ledger::LEASE;
use crate::mark::{MarkError, Statement, Tenure};
use crate::outbox::{Layout, LeftOut, OutboxRow};
use crate::ranges::RangeSet;
use postgres_protocol::escape::escape_identifier;

/// What is blocked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    Aggregate {
        kind: Option<String>,
        id: Option<String>,
    },
    Topic(Arc<str>),
}

impl What {
    fn kind(&self) -> &'static str {
        match self {
            Self::Aggregate { .. } => "aggregate",
            Self::Topic(_) => "topic",
        }
    }

    fn aggregate_type(&self) -> Option<&str> {
        match self {
            Self::Aggregate { kind, .. } => kind.as_deref(),
            Self::Topic(_) => None,
        }
    }

    fn aggregate_id(&self) -> Option<&str> {
        match self {
            Self::Aggregate { id, .. } => id.as_deref(),
            Self::Topic(_) => None,
        }
    }

    fn topic(&self) -> Option<&str> {
        match self {
            Self::Aggregate { .. } => None,
            Self::Topic(topic) => Some(topic),
        }
    }
}

/// What one checkpoint adds to one entry of `outboxd.blocked`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub what: What,
    pub held: RangeSet,
    pub row_seq: Option<i64>,
    pub row_id: String,
    pub reason: String,
    pub error: String,
    pub followers: Followers,
}

/// One row to be kept whole.
#[derive(Clone, Debug)]
pub struct KeptRow {
    pub(crate) row: OutboxRow,
    /// A dead letter; else a held row.
    pub(crate) is_dead: bool,
    pub(crate) behind: Option<What>,
    reason: String,
    error: String,
}

/// Which held rows are kept whole, besides dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// All: nothing marks the table's rows, so they can't be told from the others; or they were kept before.
    All,
    /// Those that are not visible in the table: the stream brings rows that were deleted since, and some that are not
    /// visible yet, of which the copy goes when they are released.
    Missing,
    /// None: the rows were just read from the table.
    None,
}

/// One checkpoint of rows that were put aside, ready to run.
#[derive(Debug)]
pub struct Keep {
    pub tenure: Tenure,
    pub generation: i32,
    pub layout: Arc<Layout>,
    pub whole: Whole,
    pub entries: Vec<Entry>,
    pub kept: Vec<KeptRow>,
    /// Marks dead letters in the table, where rows are marked one by one.
    pub mark: Option<Arc<Statement>>,
}

impl KeptRow {
    /// A row that was put aside, with what is known of its hold.
    pub fn new(aside: &Aside, row: OutboxRow, behind: Option<What>, held: &Held) -> Self {
        let (is_dead, reason, error) = match &aside.fate {
            Fate::Dead { reason, error, .. } => (true, (*reason).to_owned(), error.clone()),
            Fate::Blocked(aggregate) => {
                let held = held.aggregate(*aggregate);
                let words = held.map(|held| (held.reason.clone(), held.error.clone()));
                let (reason, error) = words.unwrap_or_default();
                (false, reason, error)
            }
            Fate::Topic(topic) => {
                let hold = held.topic_hold(topic);
                let error = hold.map(|hold| hold.reason.clone()).unwrap_or_default();
                (false, "topic".to_owned(), error)
            }
        };
        Self {
            row,
            is_dead,
            behind,
            reason,
            error,
        }
    }

    /// The sizes of values that were not read, by column: without them the row would come back with NULL.
    fn left_out(&self, layout: &Layout) -> Option<String> {
        let sizes = layout.columns.iter().enumerate();
        let sizes = sizes.filter_map(|(column, known)| match self.row.left_out(column) {
            Some(LeftOut::TooLarge { bytes }) => Some((known.name.clone(), bytes.into())),
            Some(LeftOut::NoColumn) | None => None,
        });
        let sizes: serde_json::Map<String, serde_json::Value> = sizes.collect();
        (!sizes.is_empty()).then(|| serde_json::Value::Object(sizes).to_string())
    }

    fn key(&self) -> (Option<i64>, String) {
        let id = self.row.id.as_ref().map(ToString::to_string);
        (self.row.seq, id.unwrap_or_default())
    }
}

impl Keep {
    /// Records the rows; all are recorded or it has to be run again. Returns the bytes of the held rows that are kept.
    ///
    /// Errors: `NotLeader` when the lease moved; after any other the outcome is unknown.
    pub async fn run(&self, client: &Client) -> Result<u64, MarkError> {
        let missing = match self.whole {
            Whole::Missing => self.missing(client).await?,
            Whole::All | Whole::None => HashSet::new(),
        };
        let is_kept = |row: &&KeptRow| {
            row.is_dead || self.whole == Whole::All || missing.contains(&row.key())
        };
        let kept: Vec<_> = self.kept.iter().filter(is_kept).collect();
        if !kept.is_empty() {
            self.keep(client, &kept).await?;
        }
        if !self.entries.is_empty() {
            self.block(client).await?;
        }
        if let Some(mark) = &self.mark {
            mark.run(client).await?;
        }
        let held = kept.iter().filter(|row| !row.is_dead);
        Ok(held.map(|row| row.row.size() as u64).sum())
    }

    /// The held rows that do not stand in the table.
    async fn missing(&self, client: &Client) -> Result<HashSet<(Option<i64>, String)>, MarkError> {
        let held = self.kept.iter().filter(|row| !row.is_dead);
        let mut missing: HashSet<_> = held.map(KeptRow::key).collect();
        if missing.is_empty() {
            return Ok(missing);
        }
        let id = &self.layout.columns[self.layout.id];
        let (table, name) = (self.layout.sql_name(), escape_identifier(&id.name));
        let seqs: Vec<i64> = missing.iter().filter_map(|(seq, _)| *seq).collect();
        let found = if seqs.len() == missing.len() {
            let sql =
                format!("SELECT seq::int8, {name}::text FROM {table} WHERE seq = ANY ($1::int8[])");
            client.query(&sql, &[&seqs]).await
        } else {
            let ids: Vec<_> = missing.iter().map(|(_, id)| id.as_str()).collect();
            let sql = format!(
                "SELECT NULL::int8, {name}::text FROM {table} WHERE {name} = ANY (($1::text[])::{}[])",
                id.type_name
            );
            client.query(&sql, &[&ids]).await
        };
        for row in &found.map_err(MarkError::sql("look held rows up"))? {
            let id: Option<String> = row.get(1);
            missing.remove(&(row.get(0), id.unwrap_or_default()));
        }
        Ok(missing)
    }

    async fn block(&self, client: &Client) -> Result<(), MarkError> {
        // An entry that was released begins anew; another one keeps its first row.
        let renewed = ["row_seq", "row_id", "reason", "error", "policy"].map(|column| {
            format!(
                "{column} = CASE b.state WHEN 'released' THEN excluded.{column} ELSE b.{column} END"
            )
        });
        let renewed = renewed.join(", ");
        let sql = format!(
            "WITH {LEASE}, written AS (\
             INSERT INTO outboxd.blocked AS b (outbox, key, kind, aggregatetype, aggregateid, topic, generation, \
               held, row_seq, row_id, reason, error, policy, epoch) \
             SELECT $1, {ENTRY_KEY}, r.kind, r.aggregatetype, r.aggregateid, r.topic, $3, \
               r.held::int8multirange, r.row_seq, r.row_id, r.reason, r.error, r.policy, $2 \
             FROM lease, unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int8[], \
               $10::text[], $11::text[], $12::text[], $13::text[]) \
             AS r (kind, aggregatetype, aggregateid, topic, held, row_seq, row_id, reason, error, policy) \
             ON CONFLICT (outbox, key) DO UPDATE SET \
               held = CASE WHEN b.generation = excluded.generation THEN b.held + excluded.held \
                 ELSE excluded.held END, \
               generation = excluded.generation, \
               {renewed}, \
               since = CASE b.state WHEN 'released' THEN clock_timestamp() ELSE b.since END, \
               attempts = b.attempts + (b.state = 'released')::int4, \
               state = CASE b.state WHEN 'released' THEN 'blocked' ELSE b.state END, \
               at = clock_timestamp(), epoch = excluded.epoch RETURNING 1) \
             SELECT (SELECT count(*) FROM written), count(*) FROM lease"
        );
        let column = |text: fn(&Entry) -> Option<&str>| -> Vec<Option<&str>> {
            self.entries.iter().map(text).collect()
        };
        let policy = |entry: &Entry| match entry.followers {
            Followers::Wait => Some("block"),
            Followers::Die => Some("follow"),
        };
        let held = self.entries.iter().map(|e| e.held.to_multirange_text());
        let (held, seqs): (Vec<_>, Vec<_>) = (
            held.collect(),
            self.entries.iter().map(|entry| entry.row_seq).collect(),
        );
        let values: [&(dyn ToSql + Sync); 13] = [
            &self.tenure.outbox,
            &self.tenure.epoch,
            &self.generation,
            &column(|entry| Some(entry.what.kind())),
            &column(|entry| entry.what.aggregate_type()),
            &column(|entry| entry.what.aggregate_id()),
            &column(|entry| entry.what.topic()),
            &held,
            &seqs,
            &column(|entry| Some(&entry.row_id)),
            &column(|entry| Some(&entry.reason)),
            &column(|entry| Some(&entry.error)),
            &column(policy),
        ];
        let row = client.query_one(&sql, &values).await;
        self.check_lease(&row.map_err(MarkError::sql("record what is blocked"))?)
    }

    async fn keep(&self, client: &Client, kept: &[&KeptRow]) -> Result<(), MarkError> {
        let sql = format!(
            "WITH {LEASE}, written AS (\
             INSERT INTO outboxd.kept AS k (outbox, key, blocked_key, state, generation, seq, row_id, \
               aggregatetype, aggregateid, columns, fields, left_out, reason, error, epoch) \
             SELECT $1, encode(sha256(convert_to(jsonb_build_array($3::int4, r.seq, r.row_id)::text, 'UTF8')), \
               'hex'), CASE WHEN r.kind IS NOT NULL THEN {ENTRY_KEY} END, r.state, $3, r.seq, r.row_id, \
               r.row_type, r.row_aggregate, $4::text[], \
               ($5::bytea[])[(r.ordinal - 1) * cardinality($4::text[]) + 1 : r.ordinal * cardinality($4::text[])], \
               r.left_out::jsonb, r.reason, r.error, $2 \
             FROM lease, unnest($6::text[], $7::int8[], $8::text[], $9::text[], $10::text[], $11::text[], \
               $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[]) WITH ORDINALITY \
             AS r (state, seq, row_id, kind, aggregatetype, aggregateid, topic, reason, error, row_type, \
               row_aggregate, left_out, ordinal) ORDER BY r.ordinal \
             ON CONFLICT (outbox, key) DO UPDATE SET state = excluded.state, blocked_key = excluded.blocked_key, \
               reason = excluded.reason, error = excluded.error, attempts = k.attempts + 1, \
               at = clock_timestamp(), epoch = excluded.epoch \
             WHERE k.state IN ('replay', 'replayed') RETURNING 1) \
             SELECT (SELECT count(*) FROM written), count(*) FROM lease"
        );
        let columns: Vec<_> = self
            .layout
            .columns
            .iter()
            .map(|c| c.name.as_str())
            .collect();
        let fields = kept
            .iter()
            .flat_map(|kept| (0..columns.len()).map(|column| kept.row.field(column)));
        let fields: Vec<Option<&[u8]>> = fields.collect();
        // A field is text in UTF-8, for that is the client's encoding.
        let text = |column: usize| -> Vec<Option<&str>> {
            let fields = kept.iter().map(|kept| kept.row.field(column));
            fields
                .map(|field| std::str::from_utf8(field?).ok())
                .collect()
        };
        let behind = |text: fn(&What) -> Option<&str>| -> Vec<Option<&str>> {
            let behind = kept.iter().map(|kept| kept.behind.as_ref());
            behind.map(|what| what.and_then(text)).collect()
        };
        let words = |text: fn(&KeptRow) -> &str| -> Vec<&str> {
            kept.iter().map(|kept| text(kept)).collect()
        };
        let (seqs, ids): (Vec<_>, Vec<_>) = kept.iter().map(|kept| kept.key()).unzip();
        let left_out = kept.iter().map(|kept| kept.left_out(&self.layout));
        let left_out: Vec<_> = left_out.collect();
        let values: [&(dyn ToSql + Sync); 17] = [
            &self.tenure.outbox,
            &self.tenure.epoch,
            &self.generation,
            &columns,
            &fields,
            &words(|kept| if kept.is_dead { "dead" } else { "held" }),
            &seqs,
            &ids,
            &behind(|what| Some(what.kind())),
            &behind(What::aggregate_type),
            &behind(What::aggregate_id),
            &behind(What::topic),
            &words(|kept| &kept.reason),
            &words(|kept| &kept.error),
            &text(self.layout.aggregate_type),
            &text(self.layout.aggregate_id),
            &left_out,
        ];
        let row = client.query_one(&sql, &values).await;
        self.check_lease(&row.map_err(MarkError::sql("keep rows"))?)
    }

    fn check_lease(&self, row: &tokio_postgres::Row) -> Result<(), MarkError> {
        match row.get::<_, i64>(1) {
            0 => Err(MarkError::NotLeader {
                outbox: self.tenure.outbox.clone(),
            }),
            _ => Ok(()),
        }
    }
}
