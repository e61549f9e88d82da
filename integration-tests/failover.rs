//! Another server in the place of the one that was read: a promoted standby with and without the slot, a restored backup.

use std::collections::HashSet;

use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use crate::harness::postgres::{Postgres, Stop, USUAL};
use crate::harness::relay::Relay;
use crate::harness::wait_until;
use crate::orders::{ARRIVAL, INSERT, Orders, wait_for_reason};

/// What one change of the server may repeat: the rows in flight.
const WINDOW_ROWS: i64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_without_the_slot_gets_one_and_its_table_is_read() {
    let primary = Postgres::start(USUAL);
    let mut orders = Orders::create(&primary, "failover", |config| config).await;
    let Some(standby) = primary.start_standby() else {
        eprintln!("skipped: pg_basebackup is not installed");
        return;
    };
    both_hosts(&mut orders, &primary, &standby);
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(100).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    promote(&orders, primary, &standby, Loss::Nothing).await;
    relay.wait_for_log("replication slot lost", ARRIVAL).await;
    judge(&orders, &standby, &ids, 0).await;
    assert!(relay.log().contains("a standby was promoted"));
}

/// `synchronized_standby_slots` keeps every row back that the standby does not have.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_with_the_slot_loses_nothing_and_has_all_that_was_published() {
    let (primary, standby, orders) = pair(&[("synchronized_standby_slots", "standby")]).await;
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(100).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    await_synced_slot(&orders, &standby).await;
    promote(&orders, primary, &standby, Loss::Possible).await;
    judge(&orders, &standby, &ids, WINDOW_ROWS as usize).await;
    assert!(!relay.log().contains("replication slot lost"));
}

/// Without `synchronized_standby_slots` Kafka alone has what the standby had not received: that, and no row more or less.
///
/// The new primary gives their numbers to other rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_that_lagged_lacks_what_was_published_and_the_relay_says_so() {
    let (primary, mut standby, orders) = pair(&[]).await;
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(100).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    await_synced_slot(&orders, &standby).await;
    await_replay(&orders, &standby).await;
    standby.configure(&[("primary_conninfo", "")]);
    standby.reload();
    await_cut(&standby).await;
    // More than the new primary writes before the relay looks at it.
    orders
        .run("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000000))")
        .await;
    let phantoms = orders.insert(100).await;
    orders.wait_for(&phantoms).await;
    let row = orders
        .client
        .query_one("SELECT max(seq) FROM outbox", &[])
        .await;
    let top: i64 = row.expect("read the outbox").get(0);
    promote(&orders, primary, &standby, Loss::OfWhatLags).await;
    let committed = committed(&orders, &standby).await;
    assert!(ids.iter().all(|id| committed.contains(id)));
    assert!(!phantoms.iter().any(|id| committed.contains(id)));
    let client = standby.client(&orders.database.name).await;
    let sql = "SELECT count(*) FROM outbox WHERE seq BETWEEN $1::int8 - 99 AND $1::int8";
    let row = client.query_one(sql, &[&top]).await;
    let again: i64 = row.expect("read the outbox").get(0);
    assert!(again > 0, "no number was given again");
    orders.wait_for(&committed).await;
    let published = orders.published();
    let distinct: HashSet<Uuid> = published.iter().copied().collect();
    let known = committed.iter().chain(&phantoms).copied().collect();
    assert_eq!(distinct, known, "not the rows of both servers");
    let duplicates = published.len() - distinct.len();
    assert!(
        duplicates <= WINDOW_ROWS as usize,
        "{duplicates} duplicates"
    );
    let log = relay.log();
    for text in [
        "a standby was promoted",
        "the new primary lacks WAL that was streamed",
    ] {
        assert!(log.contains(text), "not said: {text}");
    }
    assert!(!log.contains("replication slot lost"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_restored_from_an_older_backup_is_refused_by_the_relay_that_knew_it() {
    let mut postgres = Postgres::start(USUAL);
    let mut orders = Orders::create(&postgres, "restored", |config| config).await;
    let relay = Relay::start(&orders.config);
    let mut ids = orders.insert(10).await;
    orders.wait_for(&ids).await;
    postgres.stop(Stop::Fast);
    let backup = postgres.back_up();
    postgres.restart();
    orders.client = postgres.client(&orders.database.name).await;
    ids.extend(orders.insert(10).await);
    orders
        .run("SELECT pg_logical_emit_message(true, 'test', repeat('x', 200000))")
        .await;
    ids.extend(orders.insert(10).await);
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    postgres.stop(Stop::Fast);
    postgres.restore(&backup);
    postgres.restart();
    let status = wait_for_reason(&relay, "halted", "restored from an older backup").await;
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("bytes of WAL that it had"), "{reason}");
    // However far it writes on.
    orders.client = postgres.client(&orders.database.name).await;
    orders
        .run("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1000000))")
        .await;
    orders.insert(5).await;
    wait_for_reason(&relay, "halted", "restored from an older backup").await;
    assert_eq!(orders.published(), ids);
}

/// A primary and a standby that keeps the relay's slot, on the version that can; the settings are the primary's.
async fn pair(settings: &[(&str, &str)]) -> (Postgres, Postgres, Orders) {
    let mut primary = Postgres::start(18);
    let mut orders = Orders::create(&primary, "failover", |config| {
        config.set("limits.in_flight_rows_max", WINDOW_ROWS)
    })
    .await;
    orders
        .run("SELECT pg_create_physical_replication_slot('standby', true)")
        .await;
    primary.configure(settings);
    primary.stop(Stop::Fast);
    let backup = primary.back_up();
    let settings = [
        ("primary_slot_name", "standby"),
        ("hot_standby_feedback", "on"),
        ("synchronized_standby_slots", ""),
    ];
    let mut standby = primary.standby_from(&backup, &settings);
    primary.restart();
    standby.restart();
    orders.client = primary.client(&orders.database.name).await;
    both_hosts(&mut orders, &primary, &standby);
    (primary, standby, orders)
}

fn both_hosts(orders: &mut Orders, primary: &Postgres, standby: &Postgres) {
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port, standby.port);
    let url = format!("postgres://postgres@{hosts}/{}", orders.database.name);
    orders.config = orders.config.clone().set("source.url", url.as_str());
}

enum Loss {
    /// The standby has replayed all before the primary dies.
    Nothing,
    /// Rows are written until it does.
    Possible,
    /// Nothing is written any more; the standby lags.
    OfWhatLags,
}

async fn promote(orders: &Orders, mut primary: Postgres, standby: &Postgres, loss: Loss) {
    match loss {
        Loss::Possible => drop(orders.insert(50).await),
        Loss::Nothing => await_replay(orders, standby).await,
        Loss::OfWhatLags => {}
    }
    primary.stop(Stop::Immediate);
    let client = standby.client(&orders.database.name).await;
    let promoted = client.query_one("SELECT pg_promote()", &[]).await;
    assert!(promoted.expect("promote").get::<_, bool>(0));
    client.query(INSERT, &[&50_i64]).await.expect("insert");
}

/// Waits until the standby has replayed what the primary has written.
async fn await_replay(orders: &Orders, standby: &Postgres) {
    let sql = "SELECT pg_current_wal_flush_lsn()";
    let row = orders.client.query_one(sql, &[]).await;
    let written: PgLsn = row.expect("ask the primary").get(0);
    let client = standby.client(&orders.database.name).await;
    wait_until("the standby has replayed it", ARRIVAL, async || {
        let sql = "SELECT pg_last_wal_replay_lsn()";
        let row = client.query_one(sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, PgLsn>(0) {
            replayed if replayed >= written => Ok(()),
            replayed => Err(format!("{replayed} of {written}")),
        }
    })
    .await;
}

/// Waits until the standby receives nothing any more.
async fn await_cut(standby: &Postgres) {
    let client = standby.client("postgres").await;
    wait_until("the standby is cut off", ARRIVAL, async || {
        let sql = "SELECT count(*) FROM pg_stat_wal_receiver";
        let row = client.query_one(sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            0 => Ok(()),
            receivers => Err(format!("{receivers} receivers")),
        }
    })
    .await;
}

/// The rows that the new primary has.
async fn committed(orders: &Orders, standby: &Postgres) -> Vec<Uuid> {
    let client = standby.client(&orders.database.name).await;
    let rows = client.query("SELECT id FROM outbox", &[]).await;
    let rows = rows.expect("read the outbox");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Every row of the new primary is published, and besides those nothing.
async fn judge(orders: &Orders, standby: &Postgres, before: &[Uuid], duplicates_max: usize) {
    let committed = committed(orders, standby).await;
    assert!(before.iter().all(|id| committed.contains(id)));
    orders.wait_for(&committed).await;
    let published = orders.published();
    let distinct: HashSet<Uuid> = published.iter().copied().collect();
    assert_eq!(
        distinct,
        committed.into_iter().collect(),
        "a row came that is not there"
    );
    let duplicates = published.len() - distinct.len();
    assert!(duplicates <= duplicates_max, "{duplicates} duplicates");
}

/// Copies the slot by hand: the server's own worker takes its time where little happens. A slot whose catalog horizon lies
/// behind the standby's is not copied; it moves with what the primary logs by itself every 15 s.
async fn await_synced_slot(orders: &Orders, standby: &Postgres) {
    let client = standby.client("postgres").await;
    let sql =
        "SELECT count(*) FROM pg_replication_slots WHERE failover AND synced AND NOT temporary";
    wait_until("the standby keeps the relay's slot", ARRIVAL, async || {
        orders.run("SELECT pg_log_standby_snapshot()").await;
        let copy = "SELECT pg_sync_replication_slots()";
        client
            .batch_execute(copy)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let row = client.query_one(sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            1 => Ok(()),
            slots => Err(format!("{slots} slots are kept")),
        }
    })
    .await;
}
