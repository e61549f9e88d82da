//! A frozen relay reads nothing: what the server waits for then is bounded by a start-up parameter.

use std::time::{Duration, Instant};

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::wait_until;
use crate::matrix::rig::{Rig, SOON, STREAMED, await_publishing};

/// `tcp_user_timeout` of the relay's connections, one second, and what a busy machine adds.
const CHECKPOINT_MAX: Duration = Duration::from_secs(30 + 1 + 10);

/// The checkpointer ends the walsender of a slot that keeps too much, and waits for it: a walsender that stands in
/// a full socket would hold it for as long as the relay sleeps.
#[ignore = "takes a minute: see `make faults`"]
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_invalidated_while_its_relay_is_frozen_does_not_hold_a_checkpoint() {
    let postgres = Postgres::start_with(
        USUAL,
        &[
            ("max_slot_wal_keep_size", "32MB"),
            ("min_wal_size", "32MB"),
            ("max_wal_size", "64MB"),
            ("checkpoint_timeout", "1h"),
        ],
    );
    let rig = Rig::new(STREAMED, &postgres, Kafka::shared().await).await;
    let client = rig.client().await;
    let mut relay = rig.relay();
    let load = rig.load().await;
    await_publishing(&relay, 0, SOON).await;
    rig.await_streaming(&client).await;
    load.stop().await;
    relay.freeze();
    // Rows fill the socket, so that the walsender stands in it.
    let fill = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
                SELECT 'order', 'a', 'placed', to_json(repeat('x', 100000)) FROM generate_series(1, 1000)";
    client.batch_execute(fill).await.expect("write");
    wait_until("the walsender stands in its socket", SOON, async || {
        let sql = "SELECT coalesce(wait_event, '') FROM pg_stat_activity WHERE backend_type = 'walsender'";
        let row = client.query_one(sql, &[]).await.expect("look at the walsender");
        match row.get::<_, &str>(0) {
            "WalSenderWriteData" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        let filler = "SELECT count(pg_logical_emit_message(false, 'filler', repeat('x', 1048576))) FROM generate_series(1, 64)";
        client.batch_execute(filler).await.expect("write WAL");
        let asked_at = Instant::now();
        client
            .batch_execute("CHECKPOINT")
            .await
            .expect("checkpoint");
        longest = longest.max(asked_at.elapsed());
    }
    eprintln!("longest checkpoint: {longest:?}");
    assert!(longest < CHECKPOINT_MAX, "a checkpoint took {longest:?}");
    let sql = "SELECT wal_status FROM pg_replication_slots";
    let status: Option<String> = client
        .query_one(sql, &[])
        .await
        .expect("look at the slot")
        .get(0);
    assert_eq!(status.as_deref(), Some("lost"));
}
