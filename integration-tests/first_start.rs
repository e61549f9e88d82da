//! The first start on tables that people have: Debezium's five columns, and a long past that is not to be sent again.

use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::wait_until;
use crate::orders::{ARRIVAL, Orders, wait_for_reason, wait_for_status};

/// Debezium's outbox as its documentation has it, without numbers.
const FIVE_COLUMNS: &str = "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \
    aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)";
const UNTOLD: &str = "no column gives their order";

async fn bare(mode: &str, mark: &str, table: &str) -> Orders {
    let postgres = Postgres::shared(USUAL).await;
    let mut orders = Orders::bare(postgres, "first_start").await;
    orders.run(table).await;
    orders.config = orders.config.mode(mode).mark(mark);
    orders
}

/// The only change that a sixth column makes.
fn five_columns(mark: &str) -> String {
    match mark {
        "sent_at" => format!("{FIVE_COLUMNS}; ALTER TABLE outbox ADD COLUMN sent_at timestamptz"),
        _ => FIVE_COLUMNS.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn debeziums_five_columns_are_streamed_with_every_mark_that_they_allow() {
    for mark in ["none", "delete", "sent_at"] {
        let orders = bare("replication", mark, &five_columns(mark)).await;
        orders.config.migrate();
        // Committed behind the slot, which brings them in their order.
        let mut ids = orders.insert(20).await;
        let checked = orders.config.outboxd(&["check"]);
        assert!(checked.status.success(), "{mark}: {}", said(&checked));
        let mut relay = Relay::start(&orders.config);
        ids.extend(orders.insert(20).await);
        orders.wait_for(&ids).await;
        assert!(relay.terminate().success());
        ids.extend(orders.insert(20).await);
        relay.restart();
        ids.extend(orders.insert(1).await);
        orders.wait_for(&ids).await;
        assert_eq!(orders.published(), ids, "{mark}");
        assert!(relay.terminate().success());
    }
}

/// Debezium's habit: what is deleted in the transaction that inserted it is sent all the same.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_never_stand_in_the_five_columns_are_streamed() {
    let orders = bare("replication", "none", FIVE_COLUMNS).await;
    orders.config.migrate();
    let mut ids = Vec::new();
    for _ in 0..10 {
        orders.run("BEGIN").await;
        ids.extend(orders.insert(2).await);
        orders.run("DELETE FROM outbox; COMMIT").await;
    }
    let _relay = Relay::start(&orders.config);
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}

/// `run` makes the slot itself here; `check` and `run` say the same.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_stand_in_no_order_are_refused_with_the_reason_and_skipped_by_now() {
    for mark in ["none", "delete", "sent_at"] {
        let mut orders = bare("replication", mark, &five_columns(mark)).await;
        let old = orders.insert(5).await;
        orders.config.migrate();
        orders.config = orders.config.set("source.start", "all");
        let checked = orders.config.outboxd(&["check"]);
        assert!(!checked.status.success(), "{mark}");
        assert!(
            said(&checked).contains(UNTOLD),
            "{mark}: {}",
            said(&checked)
        );
        let mut relay = Relay::start(&orders.config);
        wait_for_reason(&relay, "halted", UNTOLD).await;
        assert!(relay.terminate().success());
        orders.config = orders.config.set("source.start", "now");
        let checked = orders.config.outboxd(&["check"]);
        assert!(checked.status.success(), "{mark}: {}", said(&checked));
        let mut relay = Relay::start(&orders.config);
        wait_until_publishing(&relay).await;
        let mut ids = orders.insert(5).await;
        orders.wait_for(&ids).await;
        relay.kill9();
        relay.restart();
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        let published = orders.published();
        assert!(old.iter().all(|id| !published.contains(id)), "{mark}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_column_lets_rows_go_out_that_stand_in_no_order() {
    let table = format!(
        "{FIVE_COLUMNS}; ALTER TABLE outbox ADD COLUMN at timestamptz DEFAULT clock_timestamp()"
    );
    let mut orders = bare("replication", "delete", &table).await;
    let mut ids = orders.insert(20).await;
    orders.config.migrate();
    orders.config = orders
        .config
        .set("source.start", "all")
        .set("source.order_column", "at");
    let checked = orders.config.outboxd(&["check"]);
    assert!(checked.status.success(), "{}", said(&checked));
    let _relay = Relay::start(&orders.config);
    orders.wait_for(&ids).await;
    ids.extend(orders.insert(20).await);
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
}

/// What is held of such a table is kept whole: it is not read from the table, which tells no order.
#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_row_of_the_five_columns_goes_out_when_it_is_retried() {
    for mark in ["none", "delete"] {
        let orders = bare("replication", mark, FIVE_COLUMNS).await;
        orders.config.migrate();
        let relay = Relay::start(&orders.config);
        wait_until_publishing(&relay).await;
        // A type whose topic is not there yet.
        let sql = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('later', 'b', 'placed', '{}')";
        orders.run(sql).await;
        let ids = orders.insert(5).await;
        orders.wait_for(&ids).await;
        let later = orders.config.topic_of("later");
        let kafka = crate::harness::kafka::Kafka::shared().await;
        let mut reader = {
            kafka.create_topic(&later, 1, &[]).await;
            kafka.reader(&[&later])
        };
        wait_until(
            "the held row is published",
            ARRIVAL,
            async || match tokio::task::block_in_place(|| reader.read_to_end().len()) {
                1 => Ok(()),
                records => Err(format!("{mark}: {records} records")),
            },
        )
        .await;
        let more = orders.insert(5).await;
        orders.wait_for(&more).await;
        assert_eq!(relay.status().await["state"], "publishing", "{mark}");
        if mark == "delete" {
            wait_until("every row is deleted", ARRIVAL, async || {
                match standing(&orders).await {
                    0 => Ok(()),
                    rows => Err(format!("{rows} stand")),
                }
            })
            .await;
        }
    }
}

/// Old rows, of which no more than a turn reads, used to hide every new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_from_now_publishes_new_rows_behind_any_number_of_old_ones() {
    let created_at =
        "ALTER TABLE outbox ADD COLUMN created_at timestamptz DEFAULT clock_timestamp()";
    let numbered = "ALTER TABLE outbox ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE";
    let serial = "ALTER TABLE outbox ADD COLUMN seq bigserial UNIQUE";
    let cases = [
        ("polling", "sent_at", created_at, Some("created_at")),
        ("polling", "delete", created_at, Some("created_at")),
        ("polling", "delete", numbered, None),
        ("polling", "sent_at", serial, None),
        ("replication", "sent_at", created_at, Some("created_at")),
        ("replication", "delete", created_at, None),
        ("replication", "none", serial, None),
        ("replication", "sent_at", numbered, None),
    ];
    for (mode, mark, column, order_column) in cases {
        let what = format!("{mode} {mark} {column}");
        let mut orders = bare(mode, mark, &format!("{}; {column}", five_columns(mark))).await;
        let old = insert_old(&orders, 10_000).await;
        orders.config = orders.config.set("source.start", "now");
        if let Some(column) = order_column {
            orders.config = orders.config.set("source.order_column", column);
        }
        orders.config.migrate();
        let mut relay = Relay::start(&orders.config);
        wait_until_publishing(&relay).await;
        let mut ids = orders.insert(50).await;
        orders.wait_for(&ids).await;
        relay.kill9();
        ids.extend(orders.insert(50).await);
        relay.restart();
        orders.wait_for(&ids).await;
        let state = "SELECT coalesce(max(length(o::text)), 0)::int8 FROM outboxd.outbox o";
        let bytes: i64 = orders.client.query_one(state, &[]).await.unwrap().get(0);
        assert!(
            bytes < 2_000,
            "{what}: a row of the state has {bytes} bytes"
        );
        let published = orders.published();
        let is_old = |id: &Uuid| old.contains(id);
        assert!(!published.iter().any(is_old), "{what}");
        let mut first = published.clone();
        let mut seen = std::collections::HashSet::new();
        first.retain(|id| seen.insert(*id));
        assert_eq!(first, ids, "{what}");
        assert!(standing(&orders).await >= 10_000, "{what}");
    }
}

/// Written before the start and committed after it, with a lower value in the column that orders the rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_being_written_at_the_start_from_now_is_published_before_its_successors() {
    for mark in ["sent_at", "delete"] {
        let table = format!(
            "{}; ALTER TABLE outbox ADD COLUMN created_at timestamptz DEFAULT clock_timestamp()",
            five_columns(mark)
        );
        let mut orders = bare("polling", mark, &table).await;
        let writer = orders.database.client().await;
        writer.batch_execute("BEGIN").await.unwrap();
        let row = writer.query_one(crate::orders::INSERT, &[&1_i64]).await;
        let mut ids: Vec<Uuid> = vec![row.unwrap().get(0)];
        insert_old(&orders, 5_000).await;
        orders.config = orders
            .config
            .set("source.start", "now")
            .set("source.order_column", "created_at");
        orders.config.migrate();
        let _relay = Relay::start(&orders.config);
        wait_until_publishing(&_relay).await;
        writer.batch_execute("COMMIT").await.unwrap();
        ids.extend(orders.insert(10).await);
        orders.wait_for(&ids).await;
        assert_eq!(orders.published(), ids, "{mark}");
    }
}

async fn insert_old(orders: &Orders, rows: i64) -> std::collections::HashSet<Uuid> {
    orders.insert(rows).await.into_iter().collect()
}

async fn standing(orders: &Orders) -> i64 {
    let rows = orders.client.query_one("SELECT count(*) FROM outbox", &[]);
    rows.await.unwrap().get(0)
}

async fn wait_until_publishing(relay: &Relay) {
    wait_for_status(relay, "it publishes", |status| {
        status["state"] == "publishing" && status["reason"] == ""
    })
    .await;
}
