//! Writes one transaction at a time: outbox rows under their aggregate's lock, and the truth beside them.

use std::ops::Range;
use std::time::Duration;

use futures_util::SinkExt;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Statement};
use uuid::Uuid;

use super::oracle::{Truth, payload};

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Commit,
    Rollback,
    /// PREPARE TRANSACTION, a moment, COMMIT PREPARED.
    TwoPhase,
}

/// How its rows get into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Insert,
    Copy,
}

/// One transaction before it is written.
#[derive(Clone, Debug)]
pub struct Draft {
    pub aggregate: String,
    pub rows: usize,
    pub padding_bytes: Range<usize>,
    pub way: Way,
    /// Inserts as many rows again inside a savepoint that is rolled back.
    pub has_savepoint: bool,
    /// Waits so long before it ends.
    pub late: Duration,
    pub fate: Fate,
}

/// A connection with its statements prepared.
pub struct OrderWriter<'a> {
    client: &'a Client,
    aggregate_type: String,
    is_bytea: bool,
    copy: String,
    lock: Statement,
    insert: Statement,
    truth: Statement,
}

impl<'a> OrderWriter<'a> {
    /// Prepares the statements for an outbox table, whatever the type of its payload.
    pub async fn open(
        client: &'a Client,
        table: &str,
        aggregate_type: &str,
    ) -> Result<Self, Error> {
        let sql = "SELECT atttypid::regtype::text FROM pg_attribute
                   WHERE attrelid = $1::text::regclass AND attname = 'payload'";
        let payload_type: String = client.query_one(sql, &[&table]).await?.get(0);
        let is_bytea = payload_type == "bytea";
        let value = if is_bytea {
            "convert_to(row.payload, 'UTF8')".to_owned()
        } else {
            format!("row.payload::{payload_type}")
        };
        let lock = "UPDATE aggregate SET version = version + $2 WHERE id = $1 RETURNING version";
        let insert = format!(
            "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload)
             SELECT row.id, $1, $2, 'Changed', {value}
             FROM unnest($3::uuid[], $4::text[]) WITH ORDINALITY AS row (id, payload, number) ORDER BY number"
        );
        let truth = "INSERT INTO truth SELECT id, $1, version FROM unnest($2::uuid[], $3::bigint[]) AS row (id, version)";
        Ok(Self {
            client,
            aggregate_type: aggregate_type.to_owned(),
            is_bytea,
            copy: format!(
                "COPY {table} (id, aggregatetype, aggregateid, type, payload) FROM STDIN"
            ),
            lock: client.prepare(lock).await?,
            insert: client.prepare(&insert).await?,
            truth: client.prepare(truth).await?,
        })
    }

    /// Writes a transaction; after an error its outcome is open, and the truth table knows it.
    pub async fn write(&self, draft: &Draft, name: &str) -> Result<(), Error> {
        self.begin(draft).await?;
        tokio::time::sleep(draft.late).await;
        self.end(draft.fate, name).await
    }

    /// Writes a transaction and leaves it open.
    pub async fn begin(&self, draft: &Draft) -> Result<(), Error> {
        self.client.batch_execute("BEGIN").await?;
        let newest: i64 = self
            .client
            .query_one(&self.lock, &[&draft.aggregate, &(draft.rows as i64)])
            .await?
            .get(0);
        if draft.has_savepoint {
            self.client.batch_execute("SAVEPOINT before_rows").await?;
            self.insert(draft, &truths(draft, newest)).await?;
            self.client
                .batch_execute("ROLLBACK TO SAVEPOINT before_rows")
                .await?;
        }
        let truths = truths(draft, newest);
        match draft.way {
            Way::Insert => self.insert(draft, &truths).await?,
            Way::Copy => self.copy(draft, &truths).await?,
        }
        let ids: Vec<Uuid> = truths.iter().map(|row| row.event_id).collect();
        let versions: Vec<i64> = truths.iter().map(|row| row.version).collect();
        self.client
            .execute(&self.truth, &[&draft.aggregate, &ids, &versions])
            .await
            .map(drop)
    }

    async fn end(&self, fate: Fate, name: &str) -> Result<(), Error> {
        match fate {
            Fate::Commit => self.client.batch_execute("COMMIT").await,
            Fate::Rollback => self.client.batch_execute("ROLLBACK").await,
            Fate::TwoPhase => {
                self.client
                    .batch_execute(&format!("PREPARE TRANSACTION '{name}'"))
                    .await?;
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..50))).await;
                self.client
                    .batch_execute(&format!("COMMIT PREPARED '{name}'"))
                    .await
            }
        }
    }

    /// Inserts the rows by one statement, numbered in their order.
    async fn insert(&self, draft: &Draft, rows: &[Truth]) -> Result<(), Error> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.event_id).collect();
        let payloads: Vec<String> = rows
            .iter()
            .map(|row| payload(row, &padding(draft)))
            .collect();
        let values: [&(dyn ToSql + Sync); 4] =
            [&self.aggregate_type, &draft.aggregate, &ids, &payloads];
        self.client.execute(&self.insert, &values).await.map(drop)
    }

    async fn copy(&self, draft: &Draft, rows: &[Truth]) -> Result<(), Error> {
        let mut text = String::new();
        for row in rows {
            let payload = payload(row, &padding(draft));
            let payload = match self.is_bytea {
                true => payload
                    .bytes()
                    .fold(r"\\x".to_owned(), |hex, byte| format!("{hex}{byte:02x}")),
                false => payload,
            };
            let Truth {
                event_id,
                aggregate,
                ..
            } = row;
            text += &format!(
                "{event_id}\t{}\t{aggregate}\tChanged\t{payload}\n",
                self.aggregate_type
            );
        }
        let mut sink = std::pin::pin!(self.client.copy_in(&self.copy).await?);
        sink.send(bytes::Bytes::from(text)).await?;
        sink.finish().await.map(drop)
    }
}

fn truths(draft: &Draft, newest: i64) -> Vec<Truth> {
    let first = newest - draft.rows as i64 + 1;
    let row = |version| Truth {
        event_id: Uuid::new_v4(),
        aggregate: draft.aggregate.clone(),
        version,
    };
    (first..=newest).map(row).collect()
}

fn padding(draft: &Draft) -> String {
    let bytes = fastrand::usize(draft.padding_bytes.clone());
    (0..bytes).map(|_| fastrand::alphanumeric()).collect()
}
