//! The identity of the numbers: what begins a new generation by itself, and what halts until a person has decided.

use std::collections::HashSet;

use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::orders::{ARRIVAL, Orders, wait_for_reason, wait_for_status};

const ALARM: &str = "a new generation of numbers begins";
const MODES: [&str; 2] = ["replication", "polling"];

/// Puts another table in the place of the outbox.
const ANOTHER_TABLE: &str = "ALTER TABLE outbox RENAME TO outbox_old; CREATE TABLE outbox
    (LIKE outbox_old INCLUDING DEFAULTS INCLUDING IDENTITY, PRIMARY KEY (id), UNIQUE (seq))";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_truncated_while_the_relay_runs_begins_a_new_generation() {
    for mode in MODES {
        let (orders, relay, mut ids) = running(mode, 30).await;
        wait_for_status(&relay, "it has a position", |status| {
            mode == "polling" || !status["position"]["confirmed_lsn"].is_null()
        })
        .await;
        orders.run("TRUNCATE outbox RESTART IDENTITY").await;
        // More than before: the last number that was sent is another row's now.
        ids.extend(orders.insert(40).await);
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        relay.wait_for_log(ALARM, ARRIVAL).await;
        assert_eq!(generation(&orders).await, 2, "{mode}");
        ids.extend(orders.insert(5).await);
        orders.wait_for(&ids).await;
        assert_each_once(&orders, &ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_truncated_while_no_relay_runs_begins_a_new_generation() {
    for mode in MODES {
        let (orders, mut relay, mut ids) = running(mode, 30).await;
        assert!(relay.terminate().success());
        orders.run("TRUNCATE outbox RESTART IDENTITY").await;
        ids.extend(orders.insert(10).await);
        relay.restart();
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        relay.wait_for_log(ALARM, ARRIVAL).await;
        assert_eq!(generation(&orders).await, 2, "{mode}");
        assert_each_once(&orders, &ids);
    }
}

/// A plain TRUNCATE goes on counting: nothing about the numbers has changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_emptied_without_restarting_its_numbers_stays_in_its_generation() {
    let (orders, mut relay, mut ids) = running("polling", 30).await;
    orders.run("TRUNCATE outbox").await;
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert!(relay.terminate().success());
    orders.run("DELETE FROM outbox").await;
    relay.restart();
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert_eq!(generation(&orders).await, 1);
    assert_each_once(&orders, &ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_set_back_halts_and_adopting_the_numbers_gets_it_going() {
    for mode in MODES {
        let (orders, mut relay, mut ids) = running(mode, 30).await;
        assert!(relay.terminate().success());
        orders
            .run("DELETE FROM outbox; SELECT setval(pg_get_serial_sequence('outbox', 'seq'), 5)")
            .await;
        ids.extend(orders.insert(3).await);
        relay.restart();
        let status = wait_for_reason(&relay, "halted", "it was set back").await;
        assert!(
            status["reason"]
                .as_str()
                .unwrap()
                .contains("outboxd migrate --adopt"),
            "{status}"
        );
        let check = orders.config.outboxd(&["check"]);
        assert_eq!(check.status.code(), Some(1), "{}", said(&check));
        assert!(
            said(&check).contains("outboxd migrate --adopt"),
            "{}",
            said(&check)
        );
        assert!(relay.terminate().success());
        adopt(&orders, "a new generation begins");
        // The numbers are new, and so is the question which of the rows to publish.
        relay.restart();
        wait_for_reason(&relay, "halted", "source.start").await;
        assert!(relay.terminate().success());
        drop(relay);
        let relay = Relay::start(&orders.config.clone().set("source.start", "all"));
        orders.wait_for(&ids).await;
        wait_for_status(&relay, "it leads", |status| status["role"] == "leader").await;
        ids.extend(orders.insert(30).await);
        orders.wait_for(&ids).await;
        assert_eq!(generation(&orders).await, 2);
        assert_each_once(&orders, &ids);
    }
}

/// The next row would draw a number that another row has: no adoption mends that.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_below_the_rows_of_its_table_halts_until_it_is_set_forward() {
    let (orders, mut relay, mut ids) = running("polling", 30).await;
    assert!(relay.terminate().success());
    let set = |to: i64| format!("SELECT setval(pg_get_serial_sequence('outbox', 'seq'), {to})");
    orders.run(&set(5)).await;
    relay.restart();
    let status = wait_for_reason(&relay, "halted", "the table holds number 30").await;
    assert!(
        status["reason"].as_str().unwrap().contains("setval"),
        "{status}"
    );
    let refused = orders.config.outboxd(&["migrate", "--adopt"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("setval"), "{}", said(&refused));
    // It looks again by itself; a restart only makes that sooner.
    orders.run(&set(30)).await;
    assert!(relay.terminate().success());
    relay.restart();
    ids.extend(orders.insert(3).await);
    orders.wait_for(&ids).await;
    assert_eq!(generation(&orders).await, 1);
    assert_each_once(&orders, &ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_table_of_the_same_name_halts() {
    for mode in MODES {
        let (orders, mut relay, ids) = running(mode, 10).await;
        assert!(relay.terminate().success());
        orders.run(ANOTHER_TABLE).await;
        orders.insert(3).await;
        relay.restart();
        let status = wait_for_reason(&relay, "halted", "the table has oid").await;
        assert!(
            status["reason"].as_str().unwrap().contains("--adopt"),
            "{status}"
        );
        assert_each_once(&orders, &ids);
        assert!(relay.is_running());
    }
}

/// No row comes and no connection is lost: the catalog check finds it.
#[tokio::test(flavor = "multi_thread")]
async fn another_table_or_a_sequence_set_back_halts_a_running_relay() {
    for mode in MODES {
        for (sql, reason) in [
            (ANOTHER_TABLE, "the table has oid"),
            (
                "SELECT setval(pg_get_serial_sequence('outbox', 'seq'), 5)",
                "the table holds number 10",
            ),
        ] {
            let (orders, relay, ids) = running(mode, 10).await;
            orders.run(sql).await;
            wait_for_reason(&relay, "halted", reason).await;
            assert_each_once(&orders, &ids);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_starts_an_empty_table_that_somebody_made_with_everything() {
    let postgres = Postgres::shared(USUAL).await;
    let orders = Orders::bare(postgres, "identity").await;
    orders
        .run(
            "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, \
             aggregateid text NOT NULL, type text, payload json, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE)",
        )
        .await;
    orders.config.migrate();
    let ids = orders.insert(3).await;
    let _relay = Relay::start(&orders.config);
    orders.wait_for(&ids).await;
    assert_each_once(&orders, &ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_system_halts_and_a_copy_that_is_adopted_goes_on_without_repeating_a_row() {
    let (orders, mut relay, mut ids) = running("polling", 10).await;
    assert!(relay.terminate().success());
    // What a dump restored elsewhere looks like.
    orders
        .run("UPDATE outboxd.outbox SET system_identifier = '1'")
        .await;
    ids.extend(orders.insert(3).await);
    relay.restart();
    wait_for_reason(&relay, "halted", "the numbers were learned on 1").await;
    assert!(relay.terminate().success());
    adopt(&orders, "the ledger goes on");
    relay.restart();
    orders.wait_for(&ids).await;
    assert_eq!(generation(&orders).await, 1);
    assert_each_once(&orders, &ids);
}

/// A relay that has published and marked so many rows.
async fn running(mode: &str, rows: i64) -> (Orders, Relay, Vec<Uuid>) {
    let postgres = Postgres::shared(USUAL).await;
    let orders = Orders::create(postgres, "identity", |config| config.mode(mode)).await;
    let relay = Relay::start(&orders.config);
    let ids = orders.insert(rows).await;
    orders.wait_for(&ids).await;
    orders.wait_until_marked().await;
    (orders, relay, ids)
}

async fn generation(orders: &Orders) -> i32 {
    let sql = "SELECT generation FROM outboxd.outbox";
    orders.client.query_one(sql, &[]).await.unwrap().get(0)
}

fn adopt(orders: &Orders, says: &str) {
    let adopted = orders.config.outboxd(&["migrate", "--adopt"]);
    assert!(adopted.status.success(), "{}", said(&adopted));
    assert!(said(&adopted).contains(says), "{}", said(&adopted));
}

/// No row was lost or invented, and none came twice: every relay was asked to stop.
fn assert_each_once(orders: &Orders, ids: &[Uuid]) {
    let published = orders.published();
    let distinct: HashSet<Uuid> = published.iter().copied().collect();
    assert_eq!(distinct, ids.iter().copied().collect());
    assert_eq!(published.len(), ids.len(), "a row came twice");
}

/// Hibernate draws numbers in pools of 50: the sequence stands at 1, the rows at 1 to 50. Marks in rows do not care.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_an_application_draws_in_pools_matter_to_the_ledger_alone() {
    let mut orders = Orders::bare(Postgres::shared(USUAL).await, "identity").await;
    orders
        .run(
            "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, \
             aggregateid text NOT NULL, type text NOT NULL, payload json, sent_at timestamptz, \
             seq bigint GENERATED BY DEFAULT AS IDENTITY (INCREMENT BY 50) UNIQUE)",
        )
        .await;
    orders.config = orders.config.mark("sent_at");
    orders.config.migrate();
    let checked = orders.config.outboxd(&["check"]);
    assert!(checked.status.success(), "{}", said(&checked));
    let mut relay = Relay::start(&orders.config);
    let mut ids = Vec::new();
    for pool in 0..3 {
        let sql = "WITH pool AS MATERIALIZED (SELECT nextval(pg_get_serial_sequence('outbox', 'seq')) AS first) \
                   INSERT INTO outbox (aggregatetype, aggregateid, type, payload, seq) \
                   SELECT 'order', 'a', 'placed', '{}', first + n FROM pool, generate_series(0, 9) n RETURNING id";
        let rows = orders.client.query(sql, &[]).await.unwrap();
        ids.extend(rows.iter().map(|row| row.get::<_, Uuid>(0)));
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        assert!(relay.terminate().success(), "pool {pool}");
        relay.restart();
    }
    assert_each_once(&orders, &ids);
    let ledger = orders.config.clone().mark("ledger");
    let checked = ledger.outboxd(&["check"]);
    assert!(!checked.status.success());
    let why = "the sequence counts by 50";
    assert!(said(&checked).contains(why), "{}", said(&checked));
    assert!(relay.terminate().success());
    wait_for_reason(&Relay::start(&ledger), "halted", "the ledger keeps numbers").await;
}
