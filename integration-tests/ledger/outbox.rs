//! An outbox with a lease for the tests of the ledger, and rows for its marks.

use bytes::Bytes;
use outboxd::config::{Config, Mark};
use outboxd::core::Delivered;
use outboxd::mark::ledger::Ledger;
use outboxd::mark::{FencingToken, MarkError, Marks};
use outboxd::postgres::catalog::{self, Table};
use outboxd::row::ranges::RangeSet;
use outboxd::row::{Field, Layout, Lsn, OutboxRow, RowId};
use outboxd::state::StateTable;
use tokio_postgres::Client;

use super::OUTBOX;
use crate::harness::postgres::{Database, Postgres, connect, migrate};
use crate::harness::relay::RelayConfig;
use crate::harness::{SOON, wait_until};

/// An outbox that `migrate` made, with a lease of epoch 1.
pub struct Outbox {
    pub database: Database,
    pub client: Client,
    mark: Mark,
}

impl Outbox {
    pub async fn create(major: u32, prefix: &str) -> Self {
        Self::create_for(major, prefix, Mark::Ledger).await
    }

    pub async fn create_for(major: u32, prefix: &str, mark: Mark) -> Self {
        let database = Postgres::shared(major).await.create_database(prefix).await;
        let client = connect(&database.url).await;
        let mode = match mark {
            Mark::None => "replication",
            Mark::Ledger | Mark::SentAt | Mark::Delete => "polling",
        };
        let mark_name = outboxd::postgres::compatibility::mark_name(mark);
        let config = RelayConfig::of(&database.name, &database.url, "127.0.0.1:1")
            .mode(mode)
            .mark(mark_name)
            .text();
        let config = Config::parse("outboxd.toml", &config, []).expect("a configuration");
        migrate(&config).await;
        let lease = "INSERT INTO outboxd.lease (outbox, owner, epoch, renewals, released, ttl) \
                     VALUES ($1, 'test', 1, 0, false, '4s')";
        client.execute(lease, &[&OUTBOX]).await.unwrap();
        Self {
            database,
            client,
            mark,
        }
    }

    pub async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub async fn one(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    pub fn states(&self) -> StateTable<'_> {
        StateTable {
            client: &self.client,
            outbox: OUTBOX,
        }
    }

    pub async fn table(&self) -> Table {
        catalog::inspect(&self.client, "public", "outbox", &Default::default())
            .await
            .unwrap()
    }

    /// Loads the ledger as a session does when it opens.
    pub async fn ledger(&self) -> Ledger {
        let state = self.states().load().await.unwrap();
        let skipped = state.skipped().clone();
        let ledger = Ledger::load(&self.client, token(1), state.generation, skipped).await;
        let mut ledger = ledger.unwrap();
        ledger.begins_at(self.table().await.first_number());
        ledger
    }

    pub async fn marks(&self, mark: Mark) -> Marks {
        match mark {
            Mark::Ledger => Marks::Ledger(self.ledger().await),
            Mark::None => Marks::None,
            mark => Marks::rows(mark, &self.table().await, token(1)),
        }
    }

    pub async fn mark(&self, rows: &[Delivered]) -> Result<(), MarkError> {
        self.mark_on(&self.client, rows).await
    }

    pub async fn mark_on(&self, client: &Client, rows: &[Delivered]) -> Result<(), MarkError> {
        let statement = Marks::Ledger(self.ledger().await).statement(rows, None);
        statement.expect("rows to mark").run(client).await.map(drop)
    }

    /// A row of the ledger as compaction leaves it.
    pub async fn stands_as_sent(&self, segment: i64, sent: &str, high_lsn: u64) {
        let sql = "INSERT INTO outboxd.ledger (outbox, generation, segment, sent, high_lsn, last_seq, last_id, epoch) \
                   SELECT $1, 1, $2, s, $4::text::pg_lsn, upper(s) - 1, 'x', 1 FROM (SELECT $3::text::int8multirange AS s) s";
        let high_lsn = Lsn(high_lsn).to_string();
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&OUTBOX, &segment, &sent, &high_lsn];
        self.client.execute(sql, &values).await.unwrap();
    }

    pub async fn ledger_rows(&self) -> i64 {
        self.one("SELECT count(*) FROM outboxd.ledger").await
    }

    pub async fn sent(&self) -> RangeSet {
        let rows = self
            .client
            .query("SELECT sent::text FROM outboxd.ledger", &[])
            .await
            .unwrap();
        rows.iter().fold(RangeSet::new(), |sent, row| {
            sent.union(&RangeSet::parse_multirange(row.get(0)).unwrap())
        })
    }

    pub async fn is_closed(&self, segment: i64) -> bool {
        let sql = "SELECT bool_and(closed) FROM outboxd.ledger WHERE segment = $1";
        let row = self.client.query_one(sql, &[&segment]).await.unwrap();
        row.get(0)
    }

    /// Every row of the table as the core hands it to the mark.
    pub async fn standing(&self) -> Vec<Delivered> {
        let sql = "SELECT seq::int8, id::text FROM outbox ORDER BY seq";
        let rows = self.client.query(sql, &[]).await.unwrap();
        rows.iter()
            .map(|row| Delivered {
                ticket: 0,
                seq: Some(row.get(0)),
                id: RowId::from_text(row.get::<_, &str>(1).as_bytes()),
                lsn: Lsn(100),
                origin: outboxd::row::Origin::Unknown,
            })
            .collect()
    }

    /// `None` where the view can't say.
    pub async fn unsent_by_the_view(&self) -> Option<i64> {
        let sql = "SELECT count(*) FROM outbox_status WHERE NOT sent";
        let unsent = self.one(sql).await;
        (self.mark != Mark::None).then_some(unsent)
    }

    /// Waits until a statement of this database waits for a lock.
    pub async fn wait_for_a_lock(&self) {
        let other = self.database.client().await;
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let probe = async || match other.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) {
            0 => Err("nobody waits"),
            _ => Ok(()),
        };
        wait_until("a statement waits for a lock", SOON, probe).await;
    }
}

pub fn token(epoch: i64) -> FencingToken {
    FencingToken {
        outbox: OUTBOX.to_owned(),
        epoch,
    }
}

pub fn delivered(seq: i64, lsn: u64) -> Delivered {
    Delivered {
        ticket: 0,
        seq: Some(seq),
        id: RowId::Uuid(uuid::Uuid::from_u128(seq as u128)),
        lsn: Lsn(lsn),
        origin: outboxd::row::Origin::Unknown,
    }
}

/// A row as the stream brings it; only its number and its commit matter here.
pub fn streamed(seq: i64, lsn: u64) -> OutboxRow {
    let layout = Layout {
        schema: "public".to_owned(),
        table: "outbox".to_owned(),
        columns: Vec::new(),
        id: 0,
        aggregate_type: 1,
        aggregate_id: 1,
        event_type: None,
        payload: 1,
        headers: None,
        topic: None,
        partition_key: None,
        seq: Some(1),
        sent_at: None,
        names: Default::default(),
    };
    let text = seq.to_string();
    let field = Field {
        start: 0,
        len: text.len() as u32,
    };
    let fields = vec![field, field].into_boxed_slice();
    OutboxRow::new(&layout, Lsn(lsn), Bytes::from(text), fields)
}
