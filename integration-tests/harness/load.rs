//! Writers that commit orders as a busy application does, and write the truth beside them.
//!
//! Every transaction takes its aggregate's row lock, inserts outbox rows, and the same rows into the truth table.
//! Some roll back, some commit late, some in two phases, some by COPY; a restarting server is only waited for.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::{Client, Error};
use uuid::Uuid;

use super::order_writer::{Draft, Fate, OrderWriter, Way};
use super::postgres::try_connect;
use super::{POLL, SOON, wait_until};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS aggregate (id text PRIMARY KEY, version bigint NOT NULL) WITH (fillfactor = 50);
    CREATE TABLE IF NOT EXISTS truth (event_id uuid PRIMARY KEY, aggregate text NOT NULL, version bigint NOT NULL);";

/// What to write. Shares are of all transactions, 0 to 1.
#[derive(Clone, Debug)]
pub struct Load {
    pub table: String,
    pub aggregate_type: String,
    pub aggregates: u32,
    pub writers: u32,
    /// Ends after so many committed transactions; without a number it runs until it is stopped.
    pub transactions: Option<u64>,
    /// Pause of each writer between transactions.
    pub pause: Duration,
    pub seed: u64,
    pub rows: Range<usize>,
    pub padding_bytes: Range<usize>,
    pub rollback: f64,
    pub savepoint: f64,
    pub two_phase: f64,
    pub copy: f64,
    /// Transactions that wait up to `late_ms_max` before they commit.
    pub late: f64,
    pub late_ms_max: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            table: "public.outbox".to_owned(),
            aggregate_type: "order".to_owned(),
            aggregates: 50,
            writers: 8,
            transactions: None,
            pause: Duration::ZERO,
            seed: 1,
            rows: 1..6,
            padding_bytes: 0..1_000,
            rollback: 0.15,
            savepoint: 0.05,
            two_phase: 0.02,
            copy: 0.01,
            late: 0.05,
            late_ms_max: 200,
        }
    }
}

/// Running writers.
pub struct Running {
    shared: Arc<Shared>,
    writers: JoinSet<()>,
}

struct Shared {
    load: Load,
    url: String,
    /// Begins the names of this load's prepared transactions.
    prefix: String,
    committed: AtomicU64,
    stopped: AtomicBool,
}

impl Load {
    /// Creates the aggregates and the truth table, then starts the writers.
    pub async fn start(self, url: &str) -> Running {
        let client = super::postgres::connect(url).await;
        prepare(&client, self.aggregates).await;
        let prefix = format!("load-{}", Uuid::new_v4());
        let shared = Shared {
            load: self,
            url: url.to_owned(),
            prefix,
            committed: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        };
        let shared = Arc::new(shared);
        let mut writers = JoinSet::new();
        for number in 0..shared.load.writers {
            writers.spawn(write(shared.clone(), number));
        }
        Running { shared, writers }
    }

    /// Runs to its end and says how many transactions it committed; needs `transactions`.
    pub async fn run(self, url: &str) -> u64 {
        assert!(
            self.transactions.is_some(),
            "a load without a number of transactions has no end"
        );
        self.start(url).await.join().await
    }
}

impl Running {
    /// Transactions that were seen to commit so far.
    pub fn committed(&self) -> u64 {
        self.shared.committed.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions have committed.
    pub async fn progress(&self, transactions: u64, timeout: Duration) {
        let goal = self.committed() + transactions;
        let probe = async || match self.committed() {
            count if count >= goal => Ok(()),
            count => Err(format!("{count} of {goal}")),
        };
        wait_until("the writers have committed more", timeout, probe).await;
    }

    /// Lets every writer end its transaction, ends what was left prepared, and says how many committed.
    pub async fn stop(self) -> u64 {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.join().await
    }

    /// Waits until the number of transactions is reached.
    pub async fn join(mut self) -> u64 {
        while let Some(ended) = self.writers.join_next().await {
            ended.expect("a writer does not panic");
        }
        let probe = async || {
            end_prepared(&self.shared.url, &self.shared.prefix)
                .await
                .map_err(|error| error.to_string())
        };
        wait_until("what was left prepared is committed", SOON, probe).await;
        self.committed()
    }
}

/// A test that failed leaves nothing prepared: every new slot of the server would wait for it.
impl Drop for Running {
    fn drop(&mut self) {
        if self.writers.is_empty() {
            return;
        }
        self.writers.abort_all();
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("start a runtime").block_on(async {
                // A writer may be about to prepare one more.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let _ = end_prepared(&shared.url, &shared.prefix).await;
            });
        });
    }
}

/// Creates the tables of the truth and some aggregates, `order-0` and up.
pub async fn prepare(client: &Client, aggregates: u32) {
    client
        .batch_execute(TABLES)
        .await
        .expect("create the truth table");
    let sql = "INSERT INTO aggregate SELECT 'order-' || n, 0 FROM generate_series(0, $1::bigint - 1) n ON CONFLICT DO NOTHING";
    client
        .execute(sql, &[&i64::from(aggregates)])
        .await
        .expect("create aggregates");
}

/// Writes one transaction of so many rows of the aggregate `order-N`, without padding.
pub async fn write_rows(
    client: &Client,
    aggregate: u32,
    rows: usize,
    fate: Fate,
) -> Result<(), Error> {
    let load = Load::default();
    let writer = OrderWriter::open(client, &load.table, &load.aggregate_type).await?;
    let name = format!("load-{}", Uuid::new_v4());
    writer.write(&draft_of(aggregate, rows, fate), &name).await
}

/// `write_rows` that leaves its transaction open on this connection.
pub async fn begin_rows(client: &Client, aggregate: u32, rows: usize) -> Result<(), Error> {
    let load = Load::default();
    let writer = OrderWriter::open(client, &load.table, &load.aggregate_type).await?;
    writer.begin(&draft_of(aggregate, rows, Fate::Commit)).await
}

fn draft_of(aggregate: u32, rows: usize, fate: Fate) -> Draft {
    Draft {
        aggregate: format!("order-{aggregate}"),
        rows,
        padding_bytes: 0..1,
        way: Way::Insert,
        has_savepoint: false,
        late: Duration::ZERO,
        fate,
    }
}

/// What the next transaction does.
fn roll(load: &Load, random: &mut fastrand::Rng) -> Draft {
    let fate = match random.f64() {
        share if share < load.rollback => Fate::Rollback,
        share if share < load.rollback + load.two_phase => Fate::TwoPhase,
        _ => Fate::Commit,
    };
    let is_late = random.f64() < load.late;
    Draft {
        aggregate: format!("order-{}", random.u32(0..load.aggregates)),
        rows: random.usize(load.rows.clone()),
        padding_bytes: load.padding_bytes.clone(),
        way: if random.f64() < load.copy {
            Way::Copy
        } else {
            Way::Insert
        },
        has_savepoint: random.f64() < load.savepoint,
        late: Duration::from_millis(if is_late {
            random.u64(0..=load.late_ms_max)
        } else {
            0
        }),
        fate,
    }
}

/// One writer: transactions until the load ends, over as many connections as it takes.
async fn write(shared: Arc<Shared>, number: u32) {
    let load = &shared.load;
    let mut random =
        fastrand::Rng::with_seed(load.seed.wrapping_mul(1_000_003) + u64::from(number));
    let mut count = 0_u64;
    while !is_over(&shared) {
        let Ok(client) = connect(&shared, number).await else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        let Ok(writer) = OrderWriter::open(&client, &load.table, &load.aggregate_type).await else {
            continue;
        };
        while !is_over(&shared) {
            count += 1;
            let draft = roll(load, &mut random);
            let name = format!("{}-{number}-{count}", shared.prefix);
            if writer.write(&draft, &name).await.is_err() {
                break;
            }
            shared
                .committed
                .fetch_add(u64::from(draft.fate != Fate::Rollback), Ordering::Relaxed);
            tokio::time::sleep(load.pause).await;
        }
    }
}

fn is_over(shared: &Shared) -> bool {
    let is_enough = shared
        .load
        .transactions
        .is_some_and(|goal| shared.committed.load(Ordering::Relaxed) >= goal);
    is_enough || shared.stopped.load(Ordering::Relaxed)
}

/// Connects, and ends what this writer left prepared: it holds locks.
async fn connect(shared: &Shared, number: u32) -> Result<Client, Error> {
    let client = try_connect(&shared.url).await?;
    end_prepared(&shared.url, &format!("{}-{number}-", shared.prefix)).await?;
    Ok(client)
}

/// Commits the prepared transactions whose name begins with `prefix`.
async fn end_prepared(url: &str, prefix: &str) -> Result<(), Error> {
    let client = try_connect(url).await?;
    let sql = "SELECT gid FROM pg_prepared_xacts WHERE starts_with(gid, $1) AND database = current_database()";
    for row in client.query(sql, &[&prefix]).await? {
        let gid: String = row.get(0);
        client
            .batch_execute(&format!("COMMIT PREPARED '{gid}'"))
            .await?;
    }
    Ok(())
}
