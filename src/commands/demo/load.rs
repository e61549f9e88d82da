//! The shop that writes while the relay is killed: orders with rollbacks and late commits.
//!
//! Every transaction takes its order's row lock first and writes what it publishes into `truth` as well.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement, Transaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::error::DemoError;
use super::judge::Committed;
use super::postgres;

const WRITERS: usize = 12;
/// Events of one order: placed, paid, and its parcels shipped.
const VERSIONS_MAX: i64 = 8;
const OPEN_ORDERS_MAX: usize = 200;

const ROLLBACK: f64 = 0.15;
const SAVEPOINT_ROLLBACK: f64 = 0.08;
const LATE: f64 = 0.03;
const TWO_EVENTS: f64 = 0.2;
const NEW_ORDER: f64 = 0.3;

const SCHEMA: &str = "
    CREATE SCHEMA shop;
    CREATE TABLE shop.orders (id text PRIMARY KEY, version bigint NOT NULL);
    CREATE TABLE shop.truth (event_id uuid PRIMARY KEY, aggregate text NOT NULL, version bigint NOT NULL);";
const PLACE: &str = "INSERT INTO shop.orders (id, version) VALUES ($1, 1) RETURNING version";
const ADVANCE: &str =
    "UPDATE shop.orders SET version = version + 1 WHERE id = $1 RETURNING version";
const PUBLISH: &str = "INSERT INTO public.outbox (id, aggregatetype, aggregateid, type, payload)
    VALUES ($1, 'order', $2, $3, $4::text::json)";
const TRUTH: &str = "INSERT INTO shop.truth (event_id, aggregate, version) VALUES ($1, $2, $3)";

/// What the writers have done so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// When each event's transaction had its COMMIT answered.
    pub committed_at: HashMap<Uuid, Instant>,
    pub transactions: usize,
    pub orders: usize,
    /// Events of transactions that were rolled back, and of rolled back savepoints.
    pub rolled_back: usize,
    /// Those of rolled back savepoints alone.
    pub rolled_back_to_savepoint: usize,
    /// Transactions that slept between their event and their COMMIT.
    pub late: usize,
}

/// The writers, until they are told to stop; dropping them stops them at once.
pub(crate) struct Load {
    shop: Arc<Shop>,
    stop: CancellationToken,
    writers: JoinSet<Result<(), tokio_postgres::Error>>,
}

#[derive(Default)]
struct Shop {
    tally: Mutex<Tally>,
    open: Mutex<Vec<String>>,
    last_order: AtomicI64,
}

/// Creates the shop's own tables.
pub(crate) async fn prepare(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(SCHEMA).await
}

/// Reads what the database says it committed.
pub(crate) async fn truth(client: &Client) -> Result<Vec<Committed>, tokio_postgres::Error> {
    let rows = client
        .query("SELECT event_id, aggregate, version FROM shop.truth", &[])
        .await?;
    let event = |row: &tokio_postgres::Row| Committed {
        id: row.get(0),
        aggregate: row.get(1),
        version: row.get(2),
    };
    Ok(rows.iter().map(event).collect())
}

impl Load {
    /// Commits one order before anything else, while no relay runs, and starts no writer yet.
    pub(crate) async fn open_shop(client: &mut Client) -> Result<Self, tokio_postgres::Error> {
        let shop = Arc::new(Shop::default());
        let statements = Statements::prepare(client).await?;
        shop.commit_first(client, &statements).await?;
        Ok(Self {
            shop,
            stop: CancellationToken::new(),
            writers: JoinSet::new(),
        })
    }

    /// Lets the writers go.
    pub(crate) fn start(&mut self, server: &postgres::Server) {
        for _ in 0..WRITERS {
            let (folder, port) = (server.socket_folder().to_owned(), server.port());
            self.writers
                .spawn(self.shop.clone().write(folder, port, self.stop.clone()));
        }
    }

    /// Lets every writer finish its transaction.
    pub(crate) async fn finish(&mut self) -> Result<(), DemoError> {
        self.stop.cancel();
        while let Some(ended) = self.writers.join_next().await {
            let written = ended.map_err(DemoError::Part)?;
            written.map_err(|source| DemoError::Sql {
                action: "write orders",
                source,
            })?;
        }
        Ok(())
    }

    /// What the writers have done so far.
    pub(crate) fn tally(&self) -> Tally {
        self.shop.tally().clone()
    }

    /// The number of events committed so far.
    pub(crate) fn committed(&self) -> usize {
        self.shop.tally().committed_at.len()
    }

    /// The number of writers.
    pub(crate) fn writers(&self) -> usize {
        WRITERS
    }
}

struct Statements {
    place: Statement,
    advance: Statement,
    publish: Statement,
    truth: Statement,
}

impl Statements {
    async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            place: client.prepare(PLACE).await?,
            advance: client.prepare(ADVANCE).await?,
            publish: client.prepare(PUBLISH).await?,
            truth: client.prepare(TRUTH).await?,
        })
    }
}

/// The order that a transaction is about.
struct Order {
    id: String,
    is_new: bool,
}

impl Shop {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, Vec<String>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(
        self: Arc<Self>,
        folder: PathBuf,
        port: u16,
        stop: CancellationToken,
    ) -> Result<(), tokio_postgres::Error> {
        let mut client = postgres::connect(&folder, port, "demo").await?;
        let statements = Statements::prepare(&client).await?;
        while !stop.is_cancelled() {
            let order = self.choose();
            self.transact(&mut client, &statements, &order).await?;
            pause(5..25).await;
        }
        Ok(())
    }

    async fn commit_first(
        &self,
        client: &mut Client,
        statements: &Statements,
    ) -> Result<(), tokio_postgres::Error> {
        let order = self.next_order();
        let transaction = client.transaction().await?;
        let event = add_event(&transaction, statements, &order, &statements.place).await?;
        transaction.commit().await?;
        self.record(&order, event.as_slice());
        Ok(())
    }

    fn next_order(&self) -> Order {
        let number = self.last_order.fetch_add(1, Ordering::Relaxed) + 1;
        Order {
            id: format!("o-{number:06}"),
            is_new: true,
        }
    }

    fn choose(&self) -> Order {
        let open = self.open();
        if open.is_empty() || open.len() < OPEN_ORDERS_MAX && fastrand::f64() < NEW_ORDER {
            return self.next_order();
        }
        Order {
            id: open[fastrand::usize(..open.len())].clone(),
            is_new: false,
        }
    }

    /// One business transaction: it ends in a COMMIT, now and then a late one, or a ROLLBACK.
    async fn transact(
        &self,
        client: &mut Client,
        statements: &Statements,
        order: &Order,
    ) -> Result<(), tokio_postgres::Error> {
        let mut transaction = client.transaction().await?;
        let first = match order.is_new {
            true => &statements.place,
            false => &statements.advance,
        };
        let mut events: Vec<Event> = Vec::new();
        events.extend(add_event(&transaction, statements, order, first).await?);
        if fastrand::f64() < SAVEPOINT_ROLLBACK {
            let savepoint = transaction.savepoint("parcel").await?;
            let undone = add_event(&savepoint, statements, order, &statements.advance).await?;
            savepoint.rollback().await?;
            self.tally().rolled_back += usize::from(undone.is_some());
            self.tally().rolled_back_to_savepoint += usize::from(undone.is_some());
        }
        if fastrand::f64() < TWO_EVENTS {
            events.extend(add_event(&transaction, statements, order, &statements.advance).await?);
        }
        if fastrand::f64() < LATE {
            self.tally().late += 1;
            pause(200..1500).await;
        }
        if fastrand::f64() < ROLLBACK {
            transaction.rollback().await?;
            self.tally().rolled_back += events.len();
            return Ok(());
        }
        transaction.commit().await?;
        self.record(order, &events);
        Ok(())
    }

    fn record(&self, order: &Order, events: &[Event]) {
        let now = Instant::now();
        let mut tally = self.tally();
        tally.transactions += 1;
        tally.orders += usize::from(order.is_new);
        tally
            .committed_at
            .extend(events.iter().map(|event| (event.id, now)));
        drop(tally);
        let mut open = self.open();
        if order.is_new {
            open.push(order.id.clone());
        }
        if events.iter().any(|event| event.version >= VERSIONS_MAX) {
            open.retain(|id| *id != order.id);
        }
    }
}

struct Event {
    id: Uuid,
    version: i64,
}

/// Adds one event to the order's history; `step` takes the order's row lock and counts its version.
async fn add_event(
    transaction: &Transaction<'_>,
    statements: &Statements,
    order: &Order,
    step: &Statement,
) -> Result<Option<Event>, tokio_postgres::Error> {
    let Some(row) = transaction.query_opt(step, &[&order.id]).await? else {
        return Ok(None);
    };
    let event = Event {
        id: Uuid::new_v4(),
        version: row.get(0),
    };
    let event_type = match event.version {
        1 => "OrderPlaced",
        2 => "OrderPaid",
        _ => "OrderShipped",
    };
    let cents = fastrand::u32(100..1_000_000);
    let payload = serde_json::json!({
        "order": order.id, "version": event.version, "total_cents": cents, "note": "Grüße, 注文 ✓",
    });
    let payload = payload.to_string();
    let row: [&(dyn ToSql + Sync); 4] = [&event.id, &order.id, &event_type, &payload];
    let truth: [&(dyn ToSql + Sync); 3] = [&event.id, &order.id, &event.version];
    let insert = transaction.execute(&statements.publish, &row);
    tokio::try_join!(insert, transaction.execute(&statements.truth, &truth))?;
    Ok(Some(event))
}

async fn pause(millis: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(millis))).await;
}
