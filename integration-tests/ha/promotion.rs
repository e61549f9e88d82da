//! The primary is gone and a standby takes its place; the URL names both.

use std::time::Instant;

use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use crate::harness::postgres::{Postgres, Stop, USUAL};
use crate::harness::relay::Relay;
use crate::harness::wait_until;
use crate::orders::{ARRIVAL, INSERT, Orders, wait_for_status};

/// The standby is listed first: as after every failover, when the old primary has come back as one.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_finds_the_primary_among_its_hosts_and_goes_on_where_the_standby_is_promoted() {
    let Some(mut pair) = Pair::start().await else {
        return;
    };
    let relay = Relay::start(&pair.orders.config);
    let mut ids = pair.orders.insert(100).await;
    pair.orders.wait_for(&ids).await;
    pair.orders.wait_until_marked().await;
    let epoch = relay.metric("outboxd_lease_epoch").await;
    pair.await_replayed().await;
    pair.primary.stop(Stop::Immediate);
    wait_for_status(&relay, "only a standby is left", |status| {
        let error = status["postgres"]["error"].as_str().unwrap_or_default();
        error.contains("is a hot standby")
    })
    .await;
    let promoted_at = Instant::now();
    ids.extend(pair.promote_and_insert(100).await);
    pair.orders.wait_for(&ids).await;
    let took = promoted_at.elapsed();
    eprintln!("published {took:?} after the promotion began");
    assert_eq!(relay.metric("outboxd_lease_epoch").await, epoch);
    let published = pair.orders.published().len();
    assert_eq!(published, ids.len(), "marked rows came again");
}

/// A primary, its standby, and a polled outbox.
struct Pair {
    primary: Postgres,
    standby: Postgres,
    orders: Orders,
}

impl Pair {
    /// `None` where no standby can be made here.
    async fn start() -> Option<Self> {
        let primary = Postgres::start(USUAL);
        let mut orders =
            Orders::create(&primary, "promotion", |config| config.mode("polling")).await;
        let Some(standby) = primary.start_standby() else {
            eprintln!("skipped: pg_basebackup is not installed");
            return None;
        };
        let (first, second) = (standby.port, primary.port);
        let hosts = format!("127.0.0.1:{first},127.0.0.1:{second}");
        let url = format!("postgres://postgres@{hosts}/{}", orders.database.name);
        orders.config = orders.config.set("source.url", url.as_str());
        Some(Self {
            primary,
            standby,
            orders,
        })
    }

    /// Waits until the standby shows all that is committed.
    async fn await_replayed(&self) {
        let row = self
            .orders
            .client
            .query_one("SELECT pg_current_wal_lsn()", &[])
            .await;
        let written: PgLsn = row.expect("ask the primary").get(0);
        let standby = self.standby.client("postgres").await;
        wait_until("the standby has replayed it", ARRIVAL, async || {
            let row = standby
                .query_one("SELECT pg_last_wal_replay_lsn()", &[])
                .await;
            match row.expect("ask the standby").get::<_, PgLsn>(0) {
                replayed if replayed >= written => Ok(()),
                replayed => Err(format!("{replayed} of {written}")),
            }
        })
        .await;
    }

    async fn promote_and_insert(&mut self, rows: i64) -> Vec<Uuid> {
        let client = self.standby.client(&self.orders.database.name).await;
        let promoted = client.query_one("SELECT pg_promote()", &[]).await;
        assert!(promoted.expect("promote").get::<_, bool>(0));
        let inserted = client.query(INSERT, &[&rows]).await.expect("insert");
        inserted.iter().map(|row| row.get(0)).collect()
    }
}
