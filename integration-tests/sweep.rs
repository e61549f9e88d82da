//! Rows that the stream never brings, whoever made the gap: found within two sweeps and published from the table.

use std::collections::HashSet;
use std::process::Command;

use serde_json::Value;
use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::{wait_until, workspace};
use crate::orders::{ARRIVAL, Orders, wait_for_reason, wait_for_status};

const MISSED: &str = "committed rows were missing from the replication stream";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_publication_left_out_are_published_in_order_whatever_the_mark() {
    for mark in ["ledger", "sent_at", "delete"] {
        let orders = orders(USUAL, mark).await;
        let (relay, mut ids) = steady(&orders).await;
        let publication = publication(&orders);
        orders
            .run(&format!(
                "ALTER PUBLICATION {publication} DROP TABLE outbox"
            ))
            .await;
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        relay.wait_for_log(MISSED, ARRIVAL).await;
        let text = format!("publication `{publication}` does not have table `public.outbox`");
        wait_for_drift(&relay, Some(&text)).await;
        assert_eq!(relay.metric("outboxd_publication_drift").await, Some(1.0));
        orders
            .run(&format!("ALTER PUBLICATION {publication} ADD TABLE outbox"))
            .await;
        wait_for_drift(&relay, None).await;
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        assert_eq!(orders.published(), ids, "{mark}");
        let status = relay.status().await;
        assert!(said_last(&status).contains(&text) || said_last(&status).contains(MISSED));
        assert!(relay.metric("outboxd_missed_rows_total").await >= Some(5.0));
    }
}

/// A filter may part an aggregate, so nothing is published until it is gone. Rows of other aggregates came and went around
/// those that it left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_stops_the_relay_and_what_it_left_out_is_found_between_the_others() {
    let orders = orders(USUAL, "ledger").await;
    let (relay, mut ids) = steady(&orders).await;
    let publication = publication(&orders);
    let filter = "WHERE (aggregateid <> 'b')";
    orders
        .run(&format!(
            "ALTER PUBLICATION {publication} SET TABLE outbox {filter}"
        ))
        .await;
    for aggregate in ["b", "a", "b", "a"] {
        ids.push(insert_of(&orders, aggregate).await);
    }
    wait_for_reason(&relay, "halted", "row filter").await;
    orders
        .run(&format!(
            "ALTER PUBLICATION {publication} SET TABLE outbox; ALTER PUBLICATION {publication} SET (publish = 'update')"
        ))
        .await;
    orders.wait_for(&ids).await;
    wait_for_drift(&relay, Some("does not publish inserts")).await;
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert_each_once(&orders, &ids);
}

/// Up to 17 the stream can't pass rows that were committed while it was gone; 18 passes them in silence.
#[tokio::test(flavor = "multi_thread")]
async fn rows_committed_without_the_publication_are_published_once_it_is_back() {
    for major in [USUAL, 18] {
        let orders = orders(major, "ledger").await;
        let (relay, mut ids) = steady(&orders).await;
        let publication = publication(&orders);
        orders.run(&format!("DROP PUBLICATION {publication}")).await;
        ids.extend(orders.insert(5).await);
        if major < 18 {
            wait_for_reason(&relay, "halted", "does not exist, and the slot can't pass").await;
        } else {
            wait_for_drift(&relay, Some("does not exist")).await;
        }
        let create =
            format!("CREATE PUBLICATION {publication} FOR TABLE outbox WITH (publish = 'insert')");
        orders.run(&create).await;
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        assert_each_once(&orders, &ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_slot_was_moved_past_are_published() {
    for mark in ["ledger", "delete"] {
        let orders = orders(USUAL, mark).await;
        let (mut relay, mut ids) = steady(&orders).await;
        assert!(relay.terminate().success());
        ids.extend(orders.insert(5).await);
        let advance = "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_insert_lsn())
                       FROM pg_replication_slots WHERE database = current_database()";
        orders.run(advance).await;
        relay.restart();
        orders.wait_for(&ids).await;
        relay.wait_for_log(MISSED, ARRIVAL).await;
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        assert_eq!(orders.published(), ids, "{mark}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_another_reader_consumed_are_published() {
    let Some(program) = Postgres::client_program("pg_recvlogical") else {
        eprintln!("skipped: pg_recvlogical is not installed");
        return;
    };
    let orders = orders(USUAL, "ledger").await;
    let (mut relay, mut ids) = steady(&orders).await;
    assert!(relay.terminate().success());
    ids.extend(orders.insert(5).await);
    let row = orders
        .client
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await;
    let end: String = row.expect("ask for the position").get(0);
    let publication = publication(&orders);
    let mut thief = Command::new(program);
    thief.args(["--start", "--file=/dev/null", "--fsync-interval=1"]);
    thief.args(["-o", "proto_version=1"]);
    thief.args(["-o", &format!("publication_names={publication}")]);
    thief.args(["--endpos", &end, "--slot", &publication]);
    thief.args(["--dbname", &orders.database.url]);
    let folder = workspace::folder("thief");
    let mut thief = workspace::Process::start(&mut thief, &folder, "log", "KILL");
    let ended = thief.wait(ARRIVAL).expect("it ends at its position");
    assert!(ended.success(), "{ended}");
    relay.restart();
    orders.wait_for(&ids).await;
    relay.wait_for_log(MISSED, ARRIVAL).await;
    assert_each_once(&orders, &ids);
}

/// A held row is not missed, and none is called missed that is only late.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_held_rolled_back_or_late_are_not_missed() {
    for mark in ["ledger", "sent_at"] {
        let orders = orders(USUAL, mark).await;
        let (relay, mut ids) = steady(&orders).await;
        let at_fault = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload, headers)
                        SELECT 'order', 'bad', 'placed', '{}', '{\"outboxd_x\": \"1\"}'";
        orders.run(at_fault).await;
        let late = orders.database.client().await;
        late.batch_execute("BEGIN").await.unwrap();
        let row = late.query_one(&insert_sql("late"), &[]).await.unwrap();
        orders
            .run("BEGIN; INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', 'a', 'placed', '{}'); ROLLBACK")
            .await;
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        wait_for_looks(&orders, 4).await;
        late.batch_execute("COMMIT").await.unwrap();
        ids.push(row.get(0));
        orders.wait_for(&ids).await;
        wait_for_looks(&orders, 4).await;
        assert_eq!(relay.metric("outboxd_missed_rows_total").await, Some(0.0));
        assert!(!relay.log().contains(MISSED), "{mark}");
        assert_each_once(&orders, &ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_is_made_anew_and_the_table_is_read() {
    // Its own server: a new slot waits for the transactions of every database.
    let postgres = Postgres::start(USUAL);
    for mark in ["ledger", "delete"] {
        let orders = Orders::create(&postgres, "sweep", |config| config.mark(mark)).await;
        let (mut relay, mut ids) = steady(&orders).await;
        // Under the running relay.
        drop_slot(&orders, DropOf::Active).await;
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        relay.wait_for_log("replication slot lost", ARRIVAL).await;
        assert_eq!(relay.metric("outboxd_slots_lost_total").await, Some(1.0));
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        // And while no relay runs.
        assert!(relay.terminate().success());
        drop_slot(&orders, DropOf::Idle).await;
        ids.extend(orders.insert(5).await);
        relay.restart();
        orders.wait_for(&ids).await;
        assert_each_once(&orders, &ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_halts_where_nothing_is_marked() {
    let orders = orders(USUAL, "none").await;
    let (relay, ids) = steady(&orders).await;
    drop_slot(&orders, DropOf::Active).await;
    orders.insert(5).await;
    let status = wait_for_reason(&relay, "halted", "is gone, and rows may have gone").await;
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("outboxd migrate"), "{reason}");
    assert_each_once(&orders, &ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_server_invalidated_is_made_anew_and_the_table_is_read() {
    let postgres = Postgres::start_with(
        USUAL,
        &[("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "32MB")],
    );
    let orders = Orders::create(&postgres, "lost", |config| config).await;
    let (mut relay, mut ids) = steady(&orders).await;
    assert!(relay.terminate().success());
    ids.extend(orders.insert(5).await);
    for _ in 0..4 {
        orders
            .run("SELECT pg_switch_wal() FROM pg_logical_emit_message(true, 'test', 'x')")
            .await;
    }
    orders.run("CHECKPOINT").await;
    let lost = "SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'";
    wait_until("the slot is lost", ARRIVAL, async || {
        match orders.client.query_one(lost, &[]).await {
            Ok(row) if row.get::<_, i64>(0) == 1 => Ok(()),
            other => Err(format!("{:?}", other.err())),
        }
    })
    .await;
    let check = orders.config.outboxd(&["check"]);
    assert!(
        said(&check).contains("has invalidated slot"),
        "{}",
        said(&check)
    );
    relay.restart();
    orders.wait_for(&ids).await;
    relay
        .wait_for_log("dropped the invalid slot", ARRIVAL)
        .await;
    ids.extend(orders.insert(5).await);
    orders.wait_for(&ids).await;
    assert_each_once(&orders, &ids);
}

/// Never dropped: it may be somebody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_plugin_or_database_is_refused_with_the_reason() {
    let orders = orders(USUAL, "ledger").await;
    drop_slot(&orders, DropOf::Idle).await;
    let slot = publication(&orders);
    orders
        .run(&format!(
            "SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"
        ))
        .await;
    orders.insert(1).await;
    let relay = Relay::start(&orders.config);
    wait_for_reason(&relay, "halted", "has the plugin test_decoding").await;
    drop(relay);
    let other = self::orders(USUAL, "ledger").await;
    drop_slot(&other, DropOf::Idle).await;
    let config = other
        .config
        .clone()
        .set("source.replication.slot", slot.as_str());
    other.insert(1).await;
    let relay = Relay::start(&config);
    wait_for_reason(
        &relay,
        "halted",
        &format!("belongs to database `{}`", orders.database.name),
    )
    .await;
    let kept = "SELECT plugin::text FROM pg_replication_slots WHERE slot_name = $1";
    let row = orders
        .client
        .query_one(kept, &[&slot])
        .await
        .expect("it is still there");
    assert_eq!(row.get::<_, &str>(0), "test_decoding");
}

/// Rows between the two were read by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn another_slot_in_the_configuration_reads_the_table_first() {
    let orders = orders(USUAL, "ledger").await;
    let (mut relay, mut ids) = steady(&orders).await;
    assert!(relay.terminate().success());
    ids.extend(orders.insert(5).await);
    let slot = format!("{}_2", publication(&orders));
    let relay = Relay::start(&orders.config.clone().set("source.replication.slot", slot));
    orders.wait_for(&ids).await;
    relay
        .wait_for_log("another slot is named: the table is read", ARRIVAL)
        .await;
    assert_each_once(&orders, &ids);
}

async fn orders(major: u32, mark: &str) -> Orders {
    let postgres = Postgres::shared(major).await;
    Orders::create(postgres, "sweep", |config| config.mark(mark)).await
}

/// A relay that streams, and the rows that it has published.
async fn steady(orders: &Orders) -> (Relay, Vec<Uuid>) {
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(5).await;
    orders.wait_for(&ids).await;
    wait_for_status(&relay, "it streams", |status| {
        !status["position"]["confirmed_lsn"].is_null()
    })
    .await;
    (relay, ids)
}

/// The harness gives the publication the slot's name.
fn publication(orders: &Orders) -> String {
    format!("outboxd_{}", orders.database.name)
}

fn insert_sql(aggregate: &str) -> String {
    format!(
        "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
         VALUES ('order', '{aggregate}', 'placed', '{{}}') RETURNING id"
    )
}

async fn insert_of(orders: &Orders, aggregate: &str) -> Uuid {
    let row = orders.client.query_one(&insert_sql(aggregate), &[]).await;
    row.expect("insert a row").get(0)
}

async fn wait_for_drift(relay: &Relay, text: Option<&str>) {
    wait_for_status(relay, &format!("of the publication {text:?}"), |status| {
        let drift = status["drift"].as_array().map_or(&[][..], Vec::as_slice);
        match text {
            None => drift.is_empty(),
            Some(text) => drift
                .iter()
                .any(|one| one.as_str().is_some_and(|one| one.contains(text))),
        }
    })
    .await;
}

fn said_last(status: &Value) -> &str {
    status["last_error"]["text"].as_str().unwrap_or_default()
}

enum DropOf {
    Active,
    Idle,
}

/// Drops the slot of this database; a walsender that reads it is ended first.
async fn drop_slot(orders: &Orders, of: DropOf) {
    let sql = match of {
        DropOf::Idle => {
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
        }
        DropOf::Active => {
            "SELECT pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name)
                           FROM pg_replication_slots WHERE database = current_database()"
        }
    };
    wait_until("the slot is dropped", ARRIVAL, async || {
        orders
            .client
            .batch_execute(sql)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

/// Waits until the watch has looked so many times more.
async fn wait_for_looks(orders: &Orders, looks: usize) {
    let sql = "SELECT query_start::text FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'outboxd sweep'";
    let mut seen = HashSet::new();
    wait_until("the watch has looked", ARRIVAL, async || {
        for row in orders
            .client
            .query(sql, &[])
            .await
            .map_err(|error| error.to_string())?
        {
            seen.insert(row.get::<_, Option<String>>(0));
        }
        if seen.len() > looks {
            Ok(())
        } else {
            Err(format!("{} times", seen.len()))
        }
    })
    .await;
}

/// No row was lost or invented, and none came twice.
fn assert_each_once(orders: &Orders, ids: &[Uuid]) {
    let published = orders.published();
    let distinct: HashSet<Uuid> = published.iter().copied().collect();
    assert_eq!(distinct, ids.iter().copied().collect());
    assert_eq!(published.len(), ids.len(), "a row came twice");
}
