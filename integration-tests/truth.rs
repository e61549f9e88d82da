//! What is seen is so: lag, held rows, ages and counters say what the table and the topic hold, whoever is asked.

mod counters;
mod cut;

use serde_json::Value;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::harness::wait_until;
use crate::orders::{ARRIVAL, Orders, wait_for_reason, wait_for_status};

/// Every way in which rows are marked one by one.
const PAIRS: [(&str, &str); 6] = [
    ("replication", "ledger"),
    ("replication", "sent_at"),
    ("replication", "delete"),
    ("polling", "ledger"),
    ("polling", "sent_at"),
    ("polling", "delete"),
];

/// Rows that wait, of an aggregate of their own and of one that they share.
const INVOICES: &str = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
    SELECT 'invoice', 'i' || number % 2, 'placed', '{}' FROM generate_series(1, 10) number";

/// A row at fault for each of three aggregates, with two behind each.
const AT_FAULT: &str = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload, headers)
    SELECT 'order', 'f' || number % 3, 'placed', '{}', '{\"id\": \"another\"}' FROM generate_series(1, 9) number";

/// What is said of rows that wait.
#[derive(Debug, PartialEq)]
struct Said {
    lag_rows: Option<u64>,
    topic_rows: Option<u64>,
    blocked: Option<u64>,
    blocked_rows: Option<u64>,
    dead_letters: Option<u64>,
}

impl Said {
    fn of(status: &Value) -> Self {
        let number = |value: &Value| value.as_u64();
        Self {
            lag_rows: number(&status["lag"]["rows"]),
            topic_rows: number(&status["held_topic_rows"]),
            blocked: number(&status["blocked_aggregates"]),
            blocked_rows: number(&status["blocked_rows"]),
            dead_letters: number(&status["dead_letters"]),
        }
    }

    fn waiting(topic_rows: u64, blocked: u64, blocked_rows: u64) -> Self {
        Self {
            lag_rows: Some(topic_rows + blocked_rows),
            topic_rows: Some(topic_rows),
            blocked: Some(blocked),
            blocked_rows: Some(blocked_rows),
            dead_letters: Some(0),
        }
    }
}

/// Waits until the relay says this, and its metrics the same.
async fn wait_until_said(relay: &Relay, said: &Said) {
    wait_for_status(relay, &format!("{said:?}"), |status| {
        Said::of(status) == *said
    })
    .await;
    let rows = |rows: Option<u64>| rows.map(|rows| rows as f64);
    let metrics = [
        ("outboxd_lag_rows", said.lag_rows),
        ("outboxd_held_rows{reason=\"topic\"}", said.topic_rows),
        (
            "outboxd_held_rows{reason=\"row_at_fault\"}",
            said.blocked_rows,
        ),
        (
            "outboxd_held_aggregates{reason=\"row_at_fault\"}",
            said.blocked,
        ),
    ];
    for (name, value) in metrics {
        assert_eq!(relay.metric(name).await, rows(value), "{name}");
    }
}

/// Runs the same with every pair, all at once: most of it is waiting.
async fn in_every_pair(run: impl AsyncFn((&'static str, &'static str))) {
    futures_util::future::join_all(PAIRS.map(|pair| run(pair))).await;
}

fn status_of(config: &RelayConfig) -> Value {
    let done = config.outboxd(&["status", "--json"]);
    serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&done)))
}

async fn scene(prefix: &str, (mode, mark): (&str, &str)) -> Orders {
    let postgres = Postgres::shared(USUAL).await;
    Orders::create(postgres, prefix, |config| config.mode(mode).mark(mark)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_wait_are_counted_once_by_the_relay_and_by_the_database() {
    in_every_pair(async |pair| {
        let orders = scene("counted", pair).await;
        let mut relay = Relay::start(&orders.config);
        orders.wait_for(&orders.insert(3).await).await;
        wait_until_said(&relay, &Said::waiting(0, 0, 0)).await;
        // The topic of invoices does not exist.
        orders.run(INVOICES).await;
        wait_until_said(&relay, &Said::waiting(10, 0, 0)).await;
        orders.run(AT_FAULT).await;
        let said = Said::waiting(10, 3, 9);
        wait_until_said(&relay, &said).await;
        // Rows that flow past them don't count.
        orders.wait_for(&orders.insert(20).await).await;
        wait_until_said(&relay, &said).await;
        relay.terminate();
        let by_database = status_of(&orders.config);
        assert_eq!(by_database["answered_by"], "database", "{pair:?}");
        assert_eq!(Said::of(&by_database), said, "{pair:?}: {by_database}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skipped_rows_and_dead_letters_are_no_lag_and_have_no_age() {
    in_every_pair(async |pair| {
        let orders = scene("skipped", pair).await;
        let config = orders.config.clone();
        let mut relay = Relay::start(&config);
        orders.run(AT_FAULT).await;
        wait_until_said(&relay, &Said::waiting(0, 3, 9)).await;
        let blocked = config.outboxd(&["blocked", "list", "--json"]);
        let blocked: Value = serde_json::from_slice(&blocked.stdout).expect("a list");
        for entry in blocked.as_array().expect("a list") {
            let id = entry["id"].to_string();
            let id = id.trim_matches('"');
            let skip = ["blocked", "skip", id, "--note", "of no use", "--yes"];
            // What stood behind it is at fault, too.
            let done = tokio::task::block_in_place(|| config.outboxd(&skip));
            assert!(
                said(&done).contains("still rejected"),
                "{pair:?}: {}",
                said(&done)
            );
        }
        let is_over =
            |status: &Value| status["blocked_aggregates"] == 3 && status["lag"]["rows"] == 6;
        wait_for_status(&relay, "one row of three is skipped", is_over).await;
        relay.terminate();
        let status = status_of(&config);
        assert_eq!(status["lag"]["rows"], 6, "{pair:?}: {status}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_no_lag() {
    in_every_pair(async |pair| {
        let orders = scene("dead", pair).await;
        let config = orders.config.clone().set("faults.policy", "dead_letter");
        let mut relay = Relay::start(&config);
        orders.run(AT_FAULT).await;
        let said = Said {
            dead_letters: Some(9),
            // What follows dies, too.
            blocked: Some(3),
            ..Said::waiting(0, 0, 0)
        };
        wait_until_said(&relay, &said).await;
        let status = relay.status().await;
        assert!(
            status["oldest_unsent_age_seconds"].is_null(),
            "{pair:?}: {status}"
        );
        assert_eq!(status["lag"]["seconds"], 0.0, "{pair:?}: {status}");
        relay.terminate();
        let status = status_of(&config);
        assert_eq!(Said::of(&status), said, "{pair:?}: {status}");
        assert!(
            status["oldest_unsent_age_seconds"].is_null(),
            "{pair:?}: {status}"
        );
    })
    .await;
}

/// Whatever a column of this name holds, the rows are counted; their age is told where it is one.
#[tokio::test(flavor = "multi_thread")]
async fn an_age_that_no_column_tells_is_not_known_and_breaks_nothing() {
    let shapes = [
        ("bigint", "extract(epoch FROM now())::bigint * 1000", false),
        ("timestamptz", "'-infinity'", false),
        ("timestamptz", "'infinity'", false),
        ("timestamp", "now()::timestamp - interval '1 hour'", true),
        ("date", "current_date - 2", true),
        ("text", "'yesterday'", false),
        ("interval", "'1 day'", false),
    ];
    for (kind, value, has_age) in shapes {
        let orders = Orders::bare(Postgres::shared(USUAL).await, "ages").await;
        orders.config.migrate();
        orders
            .run(&format!(
                "ALTER TABLE outbox DROP COLUMN created_at CASCADE; \
                 ALTER TABLE outbox ADD COLUMN created_at {kind} DEFAULT {value}"
            ))
            .await;
        orders.config.migrate();
        let mut relay = Relay::start(&orders.config);
        orders.run(INVOICES).await;
        wait_until_said(&relay, &Said::waiting(10, 0, 0)).await;
        // Counted before they were held, their age was not known.
        let is_told = |status: &Value| status["lag"]["seconds"] == 0.0;
        let status = wait_for_status(&relay, "nothing that is not held is old", is_told).await;
        let age = &status["oldest_unsent_age_seconds"];
        assert_eq!(
            age.as_f64().is_some_and(|age| age > 1_000.0),
            has_age,
            "{kind} {value}: {status}"
        );
        relay.terminate();
        let done = orders.config.outboxd(&["status"]);
        assert!(done.status.success(), "{kind} {value}: {}", said(&done));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_leader_shows_nothing_of_its_past() {
    let orders = scene("former", PAIRS[0]).await;
    let config = orders.config.clone().set("lease.ttl", "2s");
    let mut former = Relay::start(&config);
    orders.run(INVOICES).await;
    orders.run(AT_FAULT).await;
    wait_until_said(&former, &Said::waiting(10, 3, 9)).await;
    former.freeze();
    let other = Relay::start(&config);
    wait_until_said(&other, &Said::waiting(10, 3, 9)).await;
    former.thaw();
    let status = wait_for_reason(&former, "standby", "another relay").await;
    let nothing = Said {
        lag_rows: None,
        topic_rows: None,
        blocked: None,
        blocked_rows: None,
        dead_letters: None,
    };
    assert_eq!(Said::of(&status), nothing, "{status}");
    let (held, topics) = (status["held"].as_array(), status["held_topics"].as_array());
    assert_eq!(
        (held.map(Vec::len), topics.map(Vec::len)),
        (Some(0), Some(0)),
        "{status}"
    );
    assert_eq!(status["in_flight"]["rows"], 0, "{status}");
}

/// Somebody reads the slot: nothing goes out, and what waits is counted all the same.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_wait_for_a_session_are_counted() {
    let orders = scene("stolen", PAIRS[0]).await;
    let mut relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(3).await).await;
    wait_until_said(&relay, &Said::waiting(0, 0, 0)).await;
    let status = relay.status().await;
    let slot = status["slot"].as_str().expect("a slot").to_owned();
    let publication = slot.clone();
    relay.terminate();
    let thief = Thief::start(&orders, &slot, &publication);
    relay.restart();
    orders.insert(119).await;
    let is_counted = |status: &Value| status["lag"]["rows"] == 119 && status["state"] == "waiting";
    wait_for_status(&relay, "119 rows wait", is_counted).await;
    drop(thief);
    wait_until_said(&relay, &Said::waiting(0, 0, 0)).await;
}

/// `pg_recvlogical` that reads a slot and confirms nothing.
struct Thief(std::process::Child);

impl Thief {
    fn start(orders: &Orders, slot: &str, publication: &str) -> Self {
        let program = Postgres::client_program("pg_recvlogical").expect("pg_recvlogical");
        let child = std::process::Command::new(program)
            .args([
                "--start",
                "--no-loop",
                "-f",
                "/dev/null",
                "-F",
                "0",
                "-s",
                "0",
            ])
            .args(["--slot", slot, "--dbname", &orders.database.url])
            .args(["-o", "proto_version=1", "-o"])
            .arg(format!("publication_names={publication}"))
            .spawn();
        Self(child.expect("start pg_recvlogical"))
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        // It is gone where it was ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_none_of_whose_topics_can_be_written_does_not_say_that_it_publishes() {
    let orders = scene("unwritable", PAIRS[0]).await;
    let relay = Relay::start(&orders.config);
    orders.run(INVOICES).await;
    let status = wait_for_reason(&relay, "leader", "none of the topics can be written").await;
    assert_eq!(status["state"], "waiting", "{status}");
    let strict = relay.get("/readyz?strict").expect("it answers");
    assert_eq!(strict.0, 503, "{strict:?}");
    Kafka::shared()
        .await
        .create_topic(&orders.config.topic_of("invoice"), 1, &[])
        .await;
    wait_until("rows go out", ARRIVAL, async || {
        let status = relay.try_status()?;
        match status["state"] == "publishing" && status["lag"]["rows"] == 0 {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    })
    .await;
}

/// A table without numbers, on the oldest and the newest server, as a role that may do no more than it must.
#[tokio::test(flavor = "multi_thread")]
async fn rows_without_numbers_are_counted_by_a_role_of_least_rights() {
    for (major, mark) in [(14, "sent_at"), (18, "delete")] {
        let mut orders = Orders::bare(Postgres::shared(major).await, "unnumbered").await;
        let role = format!("{}_relay", orders.database.name);
        orders
            .run(&format!(
                "CREATE ROLE {role} LOGIN; CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \
                 aggregatetype text, aggregateid text, type text, payload json, headers json, \
                 created_at timestamptz NOT NULL DEFAULT clock_timestamp(), sent_at timestamptz)"
            ))
            .await;
        orders.config =
            (orders.config.mode("polling").mark(mark)).set("source.order_column", "created_at");
        let migrated = orders.config.outboxd(&["migrate", "--relay-role", &role]);
        assert!(migrated.status.success(), "{}", said(&migrated));
        let url = orders
            .database
            .url
            .replacen("//postgres@", &format!("//{role}@"), 1);
        orders.config = orders.config.set("source.url", url);
        let mut relay = Relay::start(&orders.config);
        orders.wait_for(&orders.insert(3).await).await;
        wait_until_said(&relay, &Said::waiting(0, 0, 0)).await;
        orders.run(INVOICES).await;
        wait_until_said(&relay, &Said::waiting(10, 0, 0)).await;
        relay.terminate();
        let status = status_of(&orders.config);
        assert_eq!(status["lag"]["rows"], 10, "{major} {mark}: {status}");
        assert!(
            status["held_topic_rows"].is_null(),
            "{major} {mark}: {status}"
        );
    }
}
