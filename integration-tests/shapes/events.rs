//! What was committed, and in which states: written by one writer whose every outcome is known.

use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::shape::{Shape, aggregate};
use crate::harness::postgres::connect;

/// One outbox row.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its place among the rows of its aggregate, and in its payload.
    pub number: u64,
    /// The aggregate type.
    pub kind: &'static str,
    /// What the output function prints.
    pub id: String,
    /// The states in which it was committed, the oldest first.
    pub states: Vec<u32>,
    pub wanted: Wanted,
}

impl Event {
    pub fn aggregate(&self) -> (&'static str, String) {
        (self.kind, aggregate(self.number))
    }
}

/// Whether it has to be in Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Always,
    /// Deleted before it was certain to be read.
    Perhaps,
    Never,
}

/// The application: one connection that inserts, changes and deletes rows.
pub struct Writer {
    client: Client,
    url: String,
    shape: Shape,
    table: String,
    next: u64,
    pub events: Vec<Event>,
}

/// What a database sets for everybody is tried on the relay.
const OWN_SETTINGS: &str =
    "SET idle_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = 0;
    SET default_transaction_read_only = off; SET search_path = public; SET synchronous_commit = on";

type Written = Result<(), String>;

impl Writer {
    pub async fn open(url: &str, shape: Shape, table: &str) -> Self {
        let client = connect(url).await;
        let set = client.batch_execute(OWN_SETTINGS).await;
        set.expect("settings of the application's own");
        Self {
            client,
            url: url.to_owned(),
            shape,
            table: table.to_owned(),
            next: 1,
            events: Vec::new(),
        }
    }

    /// Inserts old rows by one statement, or by one for each where they go to several tables.
    pub async fn past(&mut self, rows: u64, wanted: Wanted) -> Written {
        let numbers = self.note(rows, "order", &[1], wanted).await?;
        if !self.shape.has_one_target() {
            return self.insert_each(numbers, "order").await;
        }
        let (first, last) = (numbers.start, numbers.end - 1);
        let target = self.shape.target(0, &self.table);
        let sql = self.shape.insert(
            &target,
            "order",
            1,
            &format!("generate_series({first}::bigint, {last}::bigint) AS n"),
        );
        self.run(&sql).await
    }

    /// Inserts rows, each in a transaction of its own.
    pub async fn insert(&mut self, rows: u64) -> Written {
        self.insert_of("order", rows).await
    }

    pub async fn insert_of(&mut self, kind: &'static str, rows: u64) -> Written {
        let numbers = self.note(rows, kind, &[1], Wanted::Always).await?;
        self.insert_each(numbers, kind).await
    }

    /// One transaction with a part that is rolled back, and one that is rolled back as a whole.
    pub async fn insert_at_once(&mut self, rows: u64) -> Written {
        let gone = self.note(3, "order", &[1], Wanted::Never).await?;
        let part = self.note(2, "order", &[1], Wanted::Never).await?;
        let numbers = self.note(rows, "order", &[1], Wanted::Always).await?;
        let (gone, part) = (self.inserts(gone), self.inserts(part));
        let rows = self.inserts(numbers);
        self.run(&format!(
            "BEGIN; {gone} ROLLBACK; BEGIN; SAVEPOINT a; {part} ROLLBACK TO SAVEPOINT a; {rows} COMMIT"
        ))
        .await
    }

    /// A row whose state at its INSERT nobody committed.
    pub async fn change_within(&mut self) -> Written {
        let numbers = self.note(1, "order", &[2], Wanted::Always).await?;
        let number = numbers.start;
        let (insert, change) = (self.inserts(numbers), self.change(number, 2));
        self.within(number, &insert, &change).await
    }

    /// Debezium's habit.
    pub async fn delete_within(&mut self, wanted: Wanted) -> Written {
        let numbers = self.note(1, "order", &[1], wanted).await?;
        let number = numbers.start;
        let (insert, delete) = (self.inserts(numbers), self.delete(number));
        self.within(number, &insert, &delete).await
    }

    /// A row that a later transaction changes: each state was committed.
    pub async fn change_later(&mut self) -> Written {
        let numbers = self.note(1, "order", &[1, 2], Wanted::Always).await?;
        let number = numbers.start;
        let change = self.change(number, 2);
        self.insert_each(numbers, "order").await?;
        self.run_if_allowed(&change).await.map(drop)
    }

    /// A row that a job deletes.
    pub async fn delete_later(&mut self, wanted: Wanted) -> Written {
        let numbers = self.note(1, "order", &[1], wanted).await?;
        let number = numbers.start;
        let delete = self.delete(number);
        self.insert_each(numbers, "order").await?;
        if !self.run_if_allowed(&delete).await? {
            self.set_wanted(number, Wanted::Always);
        }
        Ok(())
    }

    /// A row whose COMMIT is flushed and waits for a standby to apply it: nobody sees it before.
    pub async fn insert_unseen(&mut self) -> Result<JoinHandle<Result<(), Error>>, String> {
        let numbers = self.note(1, "order", &[1], Wanted::Always).await?;
        let insert = self.inserts(numbers);
        let client = connect(&self.url).await;
        Ok(tokio::spawn(async move {
            client.batch_execute(OWN_SETTINGS).await?;
            client
                .batch_execute(
                    "SET synchronous_commit = remote_apply; SET statement_timeout = '120s'",
                )
                .await?;
            client.batch_execute(&insert).await
        }))
    }

    /// The ids of rows that a query gives as `id`.
    pub async fn ids(&self, sql: &str) -> Result<Vec<String>, String> {
        let rows = self.client.query(sql, &[]).await;
        let rows = rows.map_err(|error| told(&error, sql))?;
        Ok(rows.iter().map(|row| row.get("id")).collect())
    }

    pub async fn count(&self, sql: &str) -> Result<i64, String> {
        let row = self.client.query_one(sql, &[]).await;
        row.map(|row| row.get(0)).map_err(|error| told(&error, sql))
    }

    pub async fn text(&self, sql: &str) -> Result<Option<String>, String> {
        let row = self.client.query_opt(sql, &[]).await;
        let row = row.map_err(|error| told(&error, sql))?;
        Ok(row.and_then(|row| row.get(0)))
    }

    pub async fn run(&self, sql: &str) -> Written {
        let done = self.client.batch_execute(sql).await;
        done.map_err(|error| told(&error, sql))
    }

    /// An INSERT and what happens to its row, in one transaction; without the second there is no row.
    async fn within(&mut self, number: u64, insert: &str, then: &str) -> Written {
        if !self
            .run_if_allowed(&format!("BEGIN; {insert} {then}; COMMIT"))
            .await?
        {
            self.run("ROLLBACK").await?;
            self.set_wanted(number, Wanted::Never);
        }
        Ok(())
    }

    /// False where the server lets nobody change rows: a table without a key is published by somebody.
    async fn run_if_allowed(&self, sql: &str) -> Result<bool, String> {
        match self.client.batch_execute(sql).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => {
                Ok(false)
            }
            Err(error) => Err(told(&error, sql)),
        }
    }

    fn set_wanted(&mut self, number: u64, wanted: Wanted) {
        let event = self.events.iter_mut().find(|event| event.number == number);
        event.expect("it was noted").wanted = wanted;
    }

    async fn insert_each(&self, numbers: std::ops::Range<u64>, kind: &str) -> Written {
        for number in numbers {
            self.run(&self.insert_one(number, kind)).await?;
        }
        Ok(())
    }

    fn inserts(&self, numbers: std::ops::Range<u64>) -> String {
        let statements = numbers.map(|number| self.insert_one(number, "order") + ";");
        statements.collect()
    }

    fn insert_one(&self, number: u64, kind: &str) -> String {
        let target = self.shape.target(number, &self.table);
        self.shape.insert(&target, kind, 1, &row(number))
    }

    fn change(&self, number: u64, state: u32) -> String {
        let (table, payload, is_it) = (&self.table, self.shape.payload_of(state), self.is_it());
        let row = row(number);
        let column = self.shape.column("payload");
        format!("UPDATE {table} o SET {column} = {payload} FROM {row} WHERE {is_it}")
    }

    fn delete(&self, number: u64) -> String {
        let (table, row, is_it) = (&self.table, row(number), self.is_it());
        format!("DELETE FROM {table} o USING {row} WHERE {is_it}")
    }

    /// Which row of the table it is; ids that repeat are told apart by what stands beside them in the key.
    fn is_it(&self) -> String {
        let (kind, of) = (self.shape.id.kind, self.shape.id.of);
        let beside = self.shape.given.iter();
        let beside = beside.filter(|(name, _)| self.shape.key.contains(name));
        let beside: String = beside
            .map(|(name, value)| format!(" AND o.{name} = {value}"))
            .collect();
        let id = self.shape.column("id");
        format!("o.{id} = ({of})::{kind}{beside}")
    }

    /// Writes the next rows down before they are inserted.
    async fn note(
        &mut self,
        rows: u64,
        kind: &'static str,
        states: &[u32],
        wanted: Wanted,
    ) -> Result<std::ops::Range<u64>, String> {
        let numbers = self.next..self.next + rows;
        let (first, last) = (numbers.start, numbers.end - 1);
        let (id, id_kind) = (self.shape.id.of, self.shape.id.kind);
        let sql = format!(
            "SELECT format('%s', ({id})::{id_kind}) AS id FROM generate_series({first}::bigint, {last}::bigint) AS n ORDER BY n"
        );
        let ids = self.ids(&sql).await?;
        for (number, id) in numbers.clone().zip(ids) {
            let states = states.to_vec();
            self.events.push(Event {
                number,
                kind,
                id,
                states,
                wanted,
            });
        }
        self.next += rows;
        Ok(numbers)
    }
}

fn row(number: u64) -> String {
    format!("(SELECT {number}::bigint AS n) AS number")
}

/// An error with its code and the statement.
pub fn told(error: &Error, sql: &str) -> String {
    let text = error.as_db_error().map_or(error.to_string(), |error| {
        format!("{}: {}", error.code().code(), error.message())
    });
    format!("{text} in: {sql}")
}
