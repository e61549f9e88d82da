//! Commits that are visible before they are durable are not published before they are.

use std::process::Command;
use std::time::Duration;

use uuid::Uuid;

use super::scene::{Pair, SOON, Scene, count, execute, insert};
use crate::harness::oracle::{Truth, payload};
use crate::harness::postgres::{Postgres, Stop, USUAL, try_connect};

/// The server crashes while a writer commits without waiting for the log, which nobody flushes for 10 s: what is
/// lost then must not be in Kafka. Numbers of lost rows are given out again.
pub async fn a_commit_that_a_crash_undoes_is_never_published(pair: Pair) {
    let settings = [("wal_writer_delay", "10s"), ("autovacuum", "off")];
    let mut postgres = Postgres::start_with(USUAL, &settings);
    let mut scene = Scene::on(&postgres, pair).await;
    scene.config = scene.config.clone().set("source.polling.interval", "10ms");
    scene.config.migrate();
    let mut relay = scene.start();
    let (mut written, mut version) = (0, 0);
    for _ in 0..3 {
        let goal = version + 400;
        let url = scene.database.url.clone();
        let writer = tokio::spawn(async move { write_until_it_fails(&url, version).await });
        let reached = async || match newest(&scene.database.url).await {
            Some(newest) if newest >= goal => Ok(()),
            newest => Err(format!("{newest:?} of {goal}")),
        };
        crate::harness::wait_until("the writer has written", SOON, reached).await;
        postgres.stop(Stop::Immediate);
        version = writer.await.expect("the writer does not panic");
        written += 1;
        postgres.restart();
        scene.client = scene.database.client().await;
    }
    let kept = count(&scene.client, "SELECT count(*) FROM truth").await;
    println!("{pair:?}: kept {kept} of {version} rows in {written} crashes");
    assert!(kept < version, "no crash lost a row: nothing was shown");
    scene.judge_to_the_end(&mut relay).await;
}

/// The log's writer is frozen, and the lease is locked against renewals, which would flush: nobody but the relay has a
/// commit flushed that did not wait for it.
pub async fn a_commit_that_nobody_flushes_is_published(pair: Pair) {
    let postgres = Postgres::start_with(USUAL, &[("autovacuum", "off")]);
    let mut scene = Scene::on(&postgres, pair).await;
    scene.config = scene.config.clone().set("lease.ttl", "10m");
    scene.config.migrate();
    let mut relay = scene.start_steady().await;
    insert(&scene.client, "order-1", 1).await;
    scene.wait_until_marked().await;
    let writer = "SELECT pid::bigint FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let writer = count(&scene.client, writer).await;
    let mut holder = scene.database.client().await;
    let lock = holder.transaction().await.expect("open a transaction");
    execute(lock.client(), "SELECT FROM outboxd.lease FOR NO KEY UPDATE").await;
    signal(writer, "STOP");
    execute(&scene.client, "SET synchronous_commit = off").await;
    let id = insert(&scene.client, "order-1", 2).await;
    scene.wait_for_row(&mut scene.reader(), id).await;
    signal(writer, "CONT");
    lock.rollback().await.expect("give the lease back");
    scene.judge_to_the_end(&mut relay).await;
}

fn signal(pid: i64, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    assert!(
        sent.is_ok_and(|status| status.success()),
        "send {name} to process {pid}"
    );
}

/// The newest version that is visible, durable or not.
async fn newest(url: &str) -> Option<i64> {
    let client = try_connect(url).await.ok()?;
    let row = client
        .query_one("SELECT coalesce(max(version), 0) FROM truth", &[])
        .await;
    row.ok().map(|row| row.get(0))
}

/// Writes a row of one aggregate after the other, and returns the last version that it tried.
async fn write_until_it_fails(url: &str, mut version: i64) -> i64 {
    let Ok(client) = try_connect(url).await else {
        return version;
    };
    if client
        .batch_execute("SET synchronous_commit = off")
        .await
        .is_err()
    {
        return version;
    }
    loop {
        version += 1;
        let (event_id, aggregate) = (Uuid::new_v4(), format!("order-{}", version % 5));
        let row = Truth {
            event_id,
            aggregate,
            version,
        };
        let sql = "WITH truth AS (INSERT INTO truth VALUES ($1, $2, $3))
                   INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
                   VALUES ($1, 'order', $2, 'Changed', $4::text::json)";
        let written = client
            .execute(
                sql,
                &[&row.event_id, &row.aggregate, &version, &payload(&row, "")],
            )
            .await;
        if written.is_err() {
            return version;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
