//! Numbers that do not begin at 1: below zero, near the ends of their type, far apart, of every integer type.

use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::wait_until;
use crate::orders::{ARRIVAL, Orders};

const MODES: [&str; 2] = ["replication", "polling"];

/// How `seq` is declared, where it goes on after four rows, and whether four more fit.
const NUMBERINGS: [(&str, &str, Option<i64>); 9] = [
    (
        "zero",
        "bigint GENERATED ALWAYS AS IDENTITY (MINVALUE 0 START 0)",
        None,
    ),
    (
        "negative",
        "bigint GENERATED ALWAYS AS IDENTITY (MINVALUE -10 START -6)",
        None,
    ),
    (
        "segments",
        "bigint GENERATED ALWAYS AS IDENTITY (MINVALUE -2000000 START -1000003)",
        None,
    ),
    (
        "lowest",
        "bigint GENERATED ALWAYS AS IDENTITY (MINVALUE -9223372036854775808 START -9223372036854775808)",
        None,
    ),
    (
        "highest",
        "bigint GENERATED ALWAYS AS IDENTITY (START 9223372036854775799)",
        None,
    ),
    (
        "integer",
        "integer GENERATED ALWAYS AS IDENTITY (START 999998)",
        None,
    ),
    (
        "smallint",
        "smallint GENERATED ALWAYS AS IDENTITY (MINVALUE -32768 START -32768)",
        None,
    ),
    (
        "far",
        "bigint GENERATED ALWAYS AS IDENTITY (START 1000000000000)",
        Some(2_000_000_000_000),
    ),
    // A restart may begin below the START.
    (
        "restarted",
        "bigint GENERATED ALWAYS AS IDENTITY (START 1000)",
        None,
    ),
];

async fn create(prefix: &str, mode: &str, seq: &str) -> Orders {
    let postgres = Postgres::shared(USUAL).await;
    let mut orders = Orders::bare(postgres, &format!("numbers_{prefix}_{mode}")).await;
    orders
        .run(&format!(
            "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, \
             aggregateid text NOT NULL, type text NOT NULL, payload json, seq {seq} UNIQUE, \
             created_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        ))
        .await;
    orders.config = orders.config.mode(mode).set("source.start", "all");
    orders
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_out_once_in_order_and_count_as_sent_wherever_their_numbers_begin() {
    for mode in MODES {
        for (prefix, seq, goes_on_at) in NUMBERINGS {
            let orders = create(prefix, mode, seq).await;
            if prefix == "restarted" {
                orders
                    .run("ALTER TABLE outbox ALTER COLUMN seq RESTART WITH 5")
                    .await;
            }
            let mut ids = orders.insert(4).await;
            orders.config.migrate();
            let mut relay = Relay::start(&orders.config);
            assert_published(&orders, &ids).await;
            if let Some(number) = goes_on_at {
                orders
                    .run(&format!(
                        "SELECT setval(pg_get_serial_sequence('outbox', 'seq'), {number})"
                    ))
                    .await;
            }
            ids.extend(orders.insert(2).await);
            assert_published(&orders, &ids).await;
            relay.kill9();
            ids.extend(orders.insert(2).await);
            relay.restart();
            assert_published(&orders, &ids).await;
            relay.wait_for_no_lag(prefix).await;
            assert!(relay.terminate().success());
            relay.restart();
            ids.extend(orders.insert(1).await);
            assert_published(&orders, &ids).await;
        }
    }
}

/// One partition: the topic is in the order of publishing. After a kill a row may come twice, and only in its place.
async fn assert_published(orders: &Orders, ids: &[Uuid]) {
    orders.wait_for(ids).await;
    let mut first: Vec<Uuid> = Vec::new();
    for id in orders.published() {
        if !first.contains(&id) {
            first.push(id);
        }
    }
    assert_eq!(first, ids);
    orders.wait_until_marked().await;
}

impl Relay {
    async fn wait_for_no_lag(&self, what: &str) {
        wait_until(&format!("nothing waits ({what})"), ARRIVAL, async || {
            let status = self.try_status()?;
            match status["lag"]["rows"].as_u64() {
                Some(0) => Ok(()),
                _ => Err(status["lag"].to_string()),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_counts_downwards_is_refused_with_the_reason() {
    let seq =
        "bigint GENERATED ALWAYS AS IDENTITY (INCREMENT BY -1 MINVALUE -1000 MAXVALUE -1 START -1)";
    let orders = create("downwards", "polling", seq).await;
    let checked = orders.config.outboxd(&["check"]);
    assert!(!checked.status.success());
    for text in ["counts downwards", "ALTER SEQUENCE"] {
        assert!(said(&checked).contains(text), "{}", said(&checked));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_removes_old_rows_whatever_their_numbers() {
    for (prefix, seq, _) in NUMBERINGS {
        let mut orders = create(&format!("old_{prefix}"), "polling", seq).await;
        orders.config = orders.config.set("source.retention", "1s");
        let ids = orders.insert(9).await;
        orders.config.migrate();
        let _relay = Relay::start(&orders.config);
        assert_published_once(&orders, &ids).await;
        wait_until("only the highest row is left", ARRIVAL, async || {
            let rows = orders
                .client
                .query_one("SELECT count(*) FROM outbox", &[])
                .await;
            match rows.map_err(|error| error.to_string())?.get::<_, i64>(0) {
                1 => Ok(()),
                rows => Err(format!("{prefix}: {rows} rows stand")),
            }
        })
        .await;
    }
}

async fn assert_published_once(orders: &Orders, ids: &[Uuid]) {
    orders.wait_for(ids).await;
    assert_eq!(orders.published(), ids);
}
