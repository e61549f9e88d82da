//! What the relay holds on the server while it works: no lock and no transaction for long.

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::POLL;
use crate::matrix::rig::{POLLED, Pair, Rig, SOON, STREAMED, await_publishing};

/// The promise, for everything but the stream itself.
const TRANSACTION_MAX: f64 = 5.0;

/// The longest transaction of any of our SQL sessions, in seconds, whether one is idle in it, and how strong a lock
/// on the outbox was. Locks that PostgreSQL takes for an instant to extend a file or to queue for a row, as for any writer,
/// are not locks of the table.
const SAMPLE: &str = "
    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - a.xact_start)), 0)::float8,
           coalesce(bool_or(a.state LIKE 'idle in transaction%' AND clock_timestamp() - a.state_change > interval '3 s'), false),
           coalesce((SELECT string_agg(DISTINCT l.mode, ', ') FROM pg_locks l JOIN pg_stat_activity o USING (pid)
                     WHERE l.locktype = 'relation' AND l.relation = 'outbox'::regclass AND o.application_name LIKE 'outboxd%'
                       AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')), '')
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.application_name LIKE 'outboxd%' AND a.backend_type = 'client backend'";

#[tokio::test(flavor = "multi_thread")]
async fn no_relay_keeps_a_lock_or_a_transaction_open_on_the_server() {
    tokio::join!(
        sample(STREAMED),
        sample(POLLED),
        sample(Pair("polling", "sent_at")),
        sample(Pair("replication", "delete"))
    );
}

/// Samples through the start, load, a migration beside it, compaction, and a stop.
async fn sample(pair: Pair) {
    let rig = Rig::shared(pair).await;
    let load = rig.load().await;
    let watcher = rig.client().await;
    let done = CancellationToken::new();
    let watching = tokio::spawn(watch(watcher, done.clone()));
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    rig.config.migrate();
    load.progress(200, SOON).await;
    // Each session begins with a compaction.
    assert!(relay.terminate().success());
    relay.restart();
    load.progress(200, SOON).await;
    rig.judge(load, 0).await;
    done.cancel();
    let (longest, samples) = watching.await.expect("every sample is clean");
    eprintln!("{pair:?}: longest transaction {longest:.3} s in {samples} samples");
}

async fn watch(client: Client, done: CancellationToken) -> (f64, usize) {
    let sample = client.prepare(SAMPLE).await.expect("prepare a sample");
    let (mut longest, mut samples) = (0.0_f64, 0);
    while !done.is_cancelled() {
        let row = client.query_one(&sample, &[]).await.expect("take a sample");
        let (age, is_idle, locks): (f64, bool, String) = (row.get(0), row.get(1), row.get(2));
        assert!(age < TRANSACTION_MAX, "a transaction of {age} s");
        assert!(!is_idle, "a session is idle in its transaction");
        assert_eq!(locks, "", "locks on the outbox that writers would wait for");
        longest = longest.max(age);
        samples += 1;
        tokio::time::sleep(POLL / 2).await;
    }
    (longest, samples)
}
