//! `source.replication.catch_up = "table"`: a backlog is read from the table, and the slot is moved behind it.

use tokio_postgres::Client;

use crate::harness::kafka::Kafka;
use crate::harness::load::{begin_rows, prepare, write_rows};
use crate::harness::order_writer::Fate;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::wait_until;
use crate::matrix::rig::{Rig, SOON, STREAMED, TRANSACTION_ROWS, WINDOW_ROWS, await_publishing};
use crate::orders::wait_for_status;

const FAR: &str = "the slot is far behind";
const MOVED: &str = "the slot has passed what was read from the table";
/// Rows of a backlog, over so many aggregates.
const AGGREGATES: u32 = 10;
const ROWS: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_read_from_the_table_and_the_stream_begins_behind_it() {
    // Its own server: what other tests write moves its log, and a session more would find the slot far behind.
    let postgres = Postgres::start(USUAL);
    let rig = rig(&postgres).await;
    let client = rig.client().await;
    let mut relay = streaming(&rig, &client).await;
    assert!(relay.terminate().success());
    backlog(&client).await;
    let end = flushed(&client).await;
    relay.restart();
    await_stream(&client).await;
    assert_eq!(count(&relay, FAR), 1, "{}", relay.log());
    assert_eq!(count(&relay, MOVED), 1, "{}", relay.log());
    assert!(confirmed(&client).await >= end);
    let verdict = rig.oracle().await.verdict_when_drained(SOON).await;
    verdict.assert_clean(0);
    // All of it lies before the slot, which brings none of it again.
    let repeated = relay.metric("outboxd_repeated_rows_total").await;
    assert_eq!(repeated, Some(0.0));
    // A backlog that a running relay could not take: its next session looks again.
    relay.freeze();
    backlog(&client).await;
    let end_walsender = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                         WHERE database = current_database()";
    run(&client, end_walsender).await;
    relay.thaw();
    relay_says(&relay, FAR, 2).await;
    await_stream(&client).await;
    write_rows(&client, 0, 5, Fate::Commit)
        .await
        .expect("write");
    let verdict = rig.oracle().await.verdict_when_drained(SOON).await;
    verdict.assert_clean(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_a_backlog_is_read_from_the_table_loses_nothing() {
    let rig = rig(Postgres::shared(USUAL).await).await;
    let client = rig.client().await;
    let mut relay = streaming(&rig, &client).await;
    let load = rig.load().await;
    let mut kills = 0;
    for (round, rows) in [1, 3_000].into_iter().enumerate() {
        relay.kill9();
        kills += 1;
        backlog(&client).await;
        relay.restart();
        await_publishing(&relay, rows, SOON).await;
        relay.kill9();
        kills += 1;
        relay.restart();
        // While the slot is moved, or as the stream takes over.
        relay_says(&relay, MOVED, round + 1).await;
    }
    relay.kill9();
    kills += 1;
    relay.restart();
    await_stream(&client).await;
    rig.judge(load, kills * (WINDOW_ROWS + TRANSACTION_ROWS))
        .await;
}

/// Its commit comes after the position that the slot could be moved to, or before: nobody can tell, so it stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_keeps_the_slot_until_it_ends() {
    // Its own server: a new slot of any test would wait for the transaction.
    let postgres = Postgres::start(USUAL);
    let rig = rig(&postgres).await;
    let (client, late) = (rig.client().await, rig.client().await);
    let mut relay = streaming(&rig, &client).await;
    assert!(relay.terminate().success());
    begin_rows(&late, AGGREGATES, 20).await.expect("stay open");
    backlog(&client).await;
    let before = confirmed(&client).await;
    relay.restart();
    wait_for_status(&relay, "the slot waits", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        reason.starts_with("the table is read")
    })
    .await;
    // Rows go on being read from the table.
    write_rows(&client, 0, 5, Fate::Commit)
        .await
        .expect("write");
    let verdict = rig.oracle().await.verdict_when_drained(SOON).await;
    verdict.assert_clean(0);
    assert_eq!(confirmed(&client).await, before);
    run(&late, "COMMIT").await;
    await_stream(&client).await;
    assert!(confirmed(&client).await > before);
    let verdict = rig.oracle().await.verdict_when_drained(SOON).await;
    verdict.assert_clean(0);
}

async fn rig(postgres: &Postgres) -> Rig {
    let mut rig = Rig::new(STREAMED, postgres, Kafka::shared().await).await;
    rig.set("source.replication.catch_up", "table");
    prepare(&rig.client().await, 50).await;
    rig
}

/// A relay whose first start is over.
async fn streaming(rig: &Rig, client: &Client) -> Relay {
    let relay = rig.relay();
    await_stream(client).await;
    relay
}

/// Commits rows, with numbers in between that were rolled back, and fills the log until the slot is far behind.
async fn backlog(client: &Client) {
    for aggregate in 0..AGGREGATES {
        for fate in [Fate::Commit, Fate::Rollback] {
            let rows = if fate == Fate::Commit { ROWS } else { 3 };
            write_rows(client, aggregate, rows, fate)
                .await
                .expect("write");
        }
    }
    let fill = "SELECT count(pg_logical_emit_message(false, 'filler', repeat('x', 1 << 20)))
                FROM generate_series(1, 66)";
    run(client, fill).await;
}

/// Waits until a walsender reads the slot; one that is being moved is active, too.
async fn await_stream(client: &Client) {
    let sql = "SELECT count(*) FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
               WHERE s.database = current_database()";
    wait_until("the slot is read", SOON, async || {
        match client.query_one(sql, &[]).await {
            Ok(row) if row.get::<_, i64>(0) == 1 => Ok(()),
            other => Err(format!("{:?}", other.err())),
        }
    })
    .await;
}

async fn run(client: &Client, sql: &str) {
    let done = client.batch_execute(sql).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn flushed(client: &Client) -> u64 {
    lsn(client, "SELECT pg_current_wal_flush_lsn() - '0/0'").await
}

async fn confirmed(client: &Client) -> u64 {
    let sql = "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE database = current_database()";
    lsn(client, sql).await
}

async fn lsn(client: &Client, sql: &str) -> u64 {
    let row = client
        .query_one(&format!("SELECT ({sql})::int8"), &[])
        .await;
    row.expect("ask for a position").get::<_, i64>(0) as u64
}

fn count(relay: &Relay, text: &str) -> usize {
    relay.log().matches(text).count()
}

async fn relay_says(relay: &Relay, text: &str, times: usize) {
    wait_until(
        &format!("the relay says `{text}` {times} times"),
        SOON,
        async || match count(relay, text) {
            said if said >= times => Ok(()),
            said => Err(format!("{said} times")),
        },
    )
    .await;
}
