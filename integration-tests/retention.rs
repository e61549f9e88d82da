//! Retention: what was sent long ago goes, and nothing else; in both modes, beside late writers and other relays.

use std::collections::HashSet;
use std::time::Duration;

use outboxd::config::{Mark, Secret};
use outboxd::mark::MarkError;
use outboxd::postgres::ConnectOptions;
use outboxd::postgres::catalog::Table;
use outboxd::row::ranges::RangeSet;
use outboxd::state::retention::{Removable, Retention, row_age};
use uuid::Uuid;

use crate::harness::postgres::{MAJORS, Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::wait_until;
use crate::ledger::outbox::{Outbox, token};
use crate::orders::{ARRIVAL, Orders, wait_for_status};

/// Rows of an aggregate that were inserted so many hours ago, or will be.
const INSERT: &str = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload, created_at) \
                      SELECT 'order', $1::text, 'placed', '{}', now() - $2::float8 * interval '1 hour' \
                      FROM generate_series(1, $3::int8) RETURNING id";
/// An old row with a header that no row may have.
const INSERT_AT_FAULT: &str = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload, headers, created_at) \
                               SELECT 'order', 'bad', 'placed', '{}', '{\"outboxd_x\": \"1\"}', now() - interval '1 hour'";

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_that_were_sent_go_and_all_others_stay() {
    for mode in ["replication", "polling"] {
        let orders = orders(mode, "ledger").await;
        orders
            .run("UPDATE outboxd.outbox SET start = 'now', skipped = '{[1,4)}'")
            .await;
        insert(&orders, "skipped", 1.0, 3).await;
        let late = orders.database.client().await;
        late.batch_execute("BEGIN").await.unwrap();
        let late_row = late.query_one(INSERT, &[&"late", &1.0, &1_i64]).await;
        let rolled_back = format!("BEGIN; {INSERT_AT_FAULT}; ROLLBACK");
        orders.run(&rolled_back).await;
        orders.run(INSERT_AT_FAULT).await;
        let mut ids = insert(&orders, "old", 1.0, 2_500).await;
        ids.extend(insert(&orders, "young", -1.0, 3).await);
        ids.extend(insert(&orders, "old", 1.0, 2).await);
        let mut relay = Relay::start(&orders.config);
        // The highest row stays, whatever its age.
        let stays = [("bad", 1), ("old", 1), ("skipped", 3), ("young", 3)];
        wait_until_standing(&orders, &stays).await;
        late.batch_execute("COMMIT").await.unwrap();
        ids.push(late_row.unwrap().get(0));
        orders.wait_for(&ids).await;
        wait_until_standing(&orders, &stays).await;
        orders
            .run("UPDATE outbox SET created_at = now() - interval '1 hour'")
            .await;
        ids.extend(insert(&orders, "last", 1.0, 1).await);
        wait_until_standing(&orders, &[("bad", 1), ("last", 1), ("skipped", 3)]).await;
        let removed = relay.metric("outboxd_removed_rows_total").await;
        assert_eq!(removed, Some(ids.len() as f64 - 1.0), "{mode}");
        assert!(relay.terminate().success());
        assert_each_once(&orders, &ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_carry_their_mark_go_by_it_but_for_dead_letters() {
    for mode in ["replication", "polling"] {
        let postgres = Postgres::shared(USUAL).await;
        let orders = Orders::create(postgres, "retention", |config| {
            let config = config.mode(mode).mark("sent_at");
            config
                .set("source.retention", "1s")
                .set("faults.policy", "dead_letter")
        })
        .await;
        orders.run(INSERT_AT_FAULT).await;
        let ids = insert(&orders, "old", 1.0, 20).await;
        orders
            .run("UPDATE outboxd.outbox SET start = 'now', skipped = '{[22,24)}'")
            .await;
        insert(&orders, "skipped", 1.0, 2).await;
        let mut relay = Relay::start(&orders.config);
        wait_until_standing(&orders, &[("bad", 1), ("skipped", 2)]).await;
        assert!(relay.terminate().success());
        assert_each_once(&orders, &ids);
    }
}

/// The ledger is made to say too much, as a defect would: its segment is closed although a number was not sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_missed_is_published_and_not_removed() {
    for mode in ["replication", "polling"] {
        let orders = orders(mode, "ledger").await;
        let mut relay = Relay::start(&orders.config);
        let mut ids = insert(&orders, "young", -1.0, 5).await;
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        assert!(relay.terminate().success());
        orders
            .run(
                "UPDATE outboxd.ledger SET sent = sent - '{[3,4)}', closed = true;
                 SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn())
                     FROM pg_replication_slots WHERE database = current_database();
                 UPDATE outbox SET created_at = now() - interval '1 hour'",
            )
            .await;
        relay.restart();
        wait_until_standing(&orders, &[("young", 1)]).await;
        assert_eq!(relay.metric("outboxd_missed_rows_total").await, Some(1.0));
        ids.insert(5, ids[2]);
        assert_eq!(orders.published(), ids, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_and_its_standby_go_on_removing_and_lose_nothing() {
    let orders = orders("replication", "ledger").await;
    let mut relays = [Relay::start(&orders.config), Relay::start(&orders.config)];
    let mut ids = Vec::new();
    for relay in &mut relays {
        ids.extend(insert(&orders, "old", 1.0, 3_000).await);
        orders.wait_for(&ids).await;
        let few = "SELECT count(*) < 3000 FROM outbox";
        wait_until("rows are being removed", ARRIVAL, async || {
            let row = orders.client.query_one(few, &[]).await.unwrap();
            row.get::<_, bool>(0).then_some(()).ok_or("all stand")
        })
        .await;
        relay.kill9();
        relay.restart();
    }
    wait_until_standing(&orders, &[("old", 1)]).await;
    let published: HashSet<Uuid> = orders.published().into_iter().collect();
    assert_eq!(published, ids.into_iter().collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_lost_its_lease_removes_nothing() {
    for major in MAJORS {
        let outbox = sent_outbox(major).await;
        outbox.run("UPDATE outboxd.lease SET epoch = 2").await;
        let mut retention = retention(&outbox, &outbox.table().await, 1);
        let refused = retention.remove(&numbers("{[1,5)}")).await;
        assert!(
            matches!(refused, Err(MarkError::NotLeader { .. })),
            "{refused:?}"
        );
        assert_eq!(outbox.standing().await.len(), 5, "PostgreSQL {major}");
        outbox.run("UPDATE outboxd.lease SET epoch = 1").await;
        let removed = retention.remove(&numbers("{[1,6)}")).await.unwrap();
        assert_eq!(removed.gone, numbers("{[1,5)}"));
        assert_eq!(removed.left, numbers("{[5,6)}"), "the highest row stays");
    }
}

/// The rows of a truncated table carry numbers of which the ledger says that they were sent.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_began_again_are_not_taken_for_the_old_ones() {
    let outbox = sent_outbox(USUAL).await;
    let mut retention = retention(&outbox, &outbox.table().await, 1);
    outbox.run("TRUNCATE outbox RESTART IDENTITY").await;
    insert_old(&outbox, 5).await;
    let removed = retention.remove(&numbers("{[1,5)}")).await.unwrap();
    assert!(removed.is_other_table && removed.gone.is_empty());
    assert_eq!(outbox.standing().await.len(), 5);
}

/// A row that somebody has locked stays for another time: the lease's row must not wait with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_is_not_waited_for() {
    let outbox = sent_outbox(USUAL).await;
    let mut retention = retention(&outbox, &outbox.table().await, 1);
    let other = outbox.database.client().await;
    let lock = "BEGIN; SELECT FROM outbox WHERE seq = 2 FOR UPDATE";
    other.batch_execute(lock).await.unwrap();
    let refused = retention.remove(&numbers("{[1,5)}")).await;
    assert!(matches!(refused, Err(MarkError::Sql { .. })), "{refused:?}");
    assert_eq!(outbox.standing().await.len(), 5);
    other.batch_execute("ROLLBACK").await.unwrap();
    let removed = retention.remove(&numbers("{[1,5)}")).await.unwrap();
    assert_eq!(removed.gone.len(), 4);
}

/// Transactions that are older than a partition write into it late; the last partition has the highest row.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_dropped_once_all_of_its_rows_were_sent_and_late_ones_too() {
    for (major, mode) in [(14, "polling"), (18, "replication")] {
        let orders = partitioned(major, mode).await;
        let late = orders.database.client().await;
        late.batch_execute("BEGIN").await.unwrap();
        let late_row = late.query_one(INSERT, &[&"late", &1.0, &1_i64]).await;
        let mut ids = insert(&orders, "old", 1.0, 350).await;
        orders.run(INSERT_AT_FAULT).await;
        ids.extend(insert(&orders, "old", 1.0, 250).await);
        assert_eq!(
            partitions(&orders).await,
            ["0", "100", "200", "300", "400", "default"]
        );
        let mut relay = Relay::start(&orders.config);
        orders.wait_for(&ids).await;
        // The open transaction keeps every partition. What was written beyond the last one stands in the default one, and
        // goes by rows; so do the old rows of the partition with the open number.
        wait_until_standing(&orders, &[("bad", 1), ("old", 400)]).await;
        late.batch_execute("COMMIT").await.unwrap();
        ids.push(late_row.unwrap().get(0));
        orders.wait_for(&ids).await;
        // Of the partition with the blocked row the others go; the highest row stands in the default one.
        wait_until_standing(&orders, &[("bad", 1), ("old", 1)]).await;
        wait_until_partitions(&orders, &["300", "800", "900", "1000", "default"]).await;
        ids.extend(insert(&orders, "old", 1.0, 300).await);
        // The partition that is being written stays whole.
        wait_until_standing(&orders, &[("bad", 1), ("old", 3)]).await;
        assert!(relay.terminate().success());
        assert_each_once(&orders, &ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_a_missed_row_is_attached_again_and_the_row_is_published() {
    let orders = partitioned(USUAL, "polling").await;
    let mut relay = Relay::start(&orders.config);
    let mut ids = insert(&orders, "young", -1.0, 250).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    assert!(relay.terminate().success());
    // As a process that dies between two steps leaves it.
    orders
        .run(
            "UPDATE outboxd.ledger SET sent = sent - '{[50,51)}', closed = true;
             UPDATE outbox SET created_at = now() - interval '1 hour';
             ALTER TABLE outbox DETACH PARTITION outbox_p100;
             COMMENT ON TABLE outbox_p100 IS
                 'outboxd: detached from public.outbox FOR VALUES FROM (''100'') TO (''200'')'",
        )
        .await;
    relay.restart();
    wait_until_partitions(&orders, &["200", "300", "400", "500", "600", "default"]).await;
    assert_eq!(relay.metric("outboxd_missed_rows_total").await, Some(1.0));
    ids.insert(250, ids[49]);
    assert_eq!(orders.published(), ids);
    let left = "SELECT count(*) FROM pg_class WHERE relname IN ('outbox_p0', 'outbox_p100')";
    let left = orders.client.query_one(left, &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_table_holds_and_why_nothing_can_be_removed_are_said() {
    let orders = orders("polling", "ledger").await;
    insert(&orders, "young", -1.0, 50).await;
    orders.run("VACUUM ANALYZE outbox").await;
    let check = said(&orders.config.outboxd(&["check"]));
    assert!(check.contains("kept rows: about 50 rows"), "{check}");
    assert!(
        check.contains("rows that were sent go 10s after their `created_at`"),
        "{check}"
    );
    let status = said(&orders.config.outboxd(&["status"]));
    assert!(status.contains("about 50 rows"), "{status}");
    let relay = Relay::start(&orders.config);
    let is_known = |status: &serde_json::Value| status["table_size"]["rows"] == 50;
    wait_for_status(&relay, "what the table holds", is_known).await;
    assert_eq!(relay.metric("outboxd_table_rows").await, Some(50.0));
    drop(relay);
    orders
        .run("DROP VIEW outbox_status; ALTER TABLE outbox DROP created_at")
        .await;
    let check = said(&orders.config.outboxd(&["check"]));
    assert!(check.contains("no column `created_at` says"), "{check}");
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(5).await;
    orders.wait_for(&ids).await;
    assert!(relay.log().contains("no row is removed"));
}

async fn orders(mode: &str, mark: &str) -> Orders {
    let postgres = Postgres::shared(USUAL).await;
    Orders::create(postgres, "retention", |config| {
        let config = config.mode(mode).mark(mark);
        config.set("source.retention", "10s")
    })
    .await
}

/// An outbox whose partitions take a hundred numbers each.
async fn partitioned(major: u32, mode: &str) -> Orders {
    let postgres = Postgres::shared(major).await;
    let mut orders = Orders::bare(postgres, "retention").await;
    orders.config = orders.config.mode(mode).set("source.retention", "10s");
    let migrate = ["migrate", "--partitioned", "--partition-rows", "100"];
    let done = orders.config.outboxd(&migrate);
    assert!(done.status.success(), "{}", said(&done));
    orders
}

/// The beginnings of the partitions, in order, the default one last.
async fn partitions(orders: &Orders) -> Vec<String> {
    let sql = "SELECT replace(replace(c.relname, 'outbox_p', ''), 'outbox_', '') FROM pg_inherits i
               JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'outbox'::regclass
               ORDER BY length(c.relname), 1";
    let rows = orders.client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn wait_until_partitions(orders: &Orders, expected: &[&str]) {
    wait_until(
        &format!("the partitions are {expected:?}"),
        ARRIVAL,
        async || {
            let found = partitions(orders).await;
            if found == expected {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        },
    )
    .await;
}

async fn insert(orders: &Orders, aggregate: &str, hours: f64, rows: i64) -> Vec<Uuid> {
    let inserted = orders
        .client
        .query(INSERT, &[&aggregate, &hours, &rows])
        .await;
    let inserted = inserted.expect("insert into the outbox");
    inserted.iter().map(|row| row.get(0)).collect()
}

/// Waits until exactly so many rows of each aggregate stand in the table.
async fn wait_until_standing(orders: &Orders, expected: &[(&str, i64)]) {
    let sql = "SELECT aggregateid, count(*) FROM outbox GROUP BY 1 ORDER BY 1";
    wait_until(&format!("{expected:?} stand"), ARRIVAL, async || {
        let rows = orders.client.query(sql, &[]).await;
        let rows = rows.map_err(|error| error.to_string())?;
        let found: Vec<(&str, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        if found == expected {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
}

/// An outbox with five old rows, all of them in the ledger.
async fn sent_outbox(major: u32) -> Outbox {
    let outbox = Outbox::create(major, "retention").await;
    insert_old(&outbox, 5).await;
    outbox.stands_as_sent(0, "{[1,6)}", 100).await;
    outbox
}

async fn insert_old(outbox: &Outbox, rows: i64) {
    let inserted = outbox.client.query(INSERT, &[&"old", &1.0, &rows]).await;
    inserted.expect("insert into the outbox");
}

fn retention(outbox: &Outbox, table: &Table, epoch: i64) -> Retention {
    let options = ConnectOptions::parse(&Secret::new(outbox.database.url.clone()));
    let removable = Removable {
        table,
        age: row_age::age(Mark::Ledger, table).expect("the age of its rows is known"),
        generation: 1,
        keep: Duration::from_secs(60),
    };
    Retention::new(options.expect("a URL"), token(epoch), &removable)
}

fn numbers(text: &str) -> RangeSet {
    RangeSet::parse_multirange(text).expect("a multirange")
}

/// No row was lost or invented, and none came twice.
fn assert_each_once(orders: &Orders, ids: &[Uuid]) {
    let published = orders.published();
    let distinct: HashSet<Uuid> = published.iter().copied().collect();
    assert_eq!(distinct, ids.iter().copied().collect());
    assert_eq!(published.len(), ids.len(), "a row came twice");
}
