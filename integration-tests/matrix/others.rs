//! What applications, jobs and neighbours do beside the relay: commits that nobody sees yet, rows that change or go,
//! publications and DDL.

use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use super::rig::{Pair, Rig, SOON, await_publishing, published, random_moment};
use super::scene::{Scene, both, both_or_unmarked};
use crate::harness::kafka::Kafka;
use crate::harness::load::{prepare, write_rows};
use crate::harness::oracle::{Truth, payload};
use crate::harness::order_writer::Fate;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::standby::FlushingStandby;
use crate::harness::wait_until;

/// An aggregate that no writer of the load locks.
const OWN: u32 = 50;

const CUT: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name LIKE 'outboxd%'";

/// A commit that waits for a standby to apply it is decoded and not seen; then it is, and its aggregate goes on.
pub async fn unseen(scene: &Scene) {
    let mut postgres = Postgres::start(USUAL);
    let standby = FlushingStandby::start(&mut postgres).await;
    both(scene, async |scene, pair| {
        let rig = Rig::new(pair, &postgres, Kafka::shared().await).await;
        unseen_by(scene, &rig).await;
    })
    .await;
    standby.end(&mut postgres).await;
}

async fn unseen_by(scene: &Scene, rig: &Rig) {
    let client = rig.client().await;
    prepare(&client, OWN + 1).await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    for number in 0..scene.pick(3, 10, 50) {
        let waiting = begin_unseen(rig, &client).await;
        if number % 2 == 0 {
            let _ = client.query(CUT, &[]).await;
        } else {
            assert!(relay.terminate().success());
            relay.restart();
        }
        scene.ran();
        // All others flow meanwhile.
        let before = published(&relay).await;
        await_publishing(&relay, before + 100, SOON).await;
        random_moment(Duration::from_secs(scene.pick(1, 6, 12))).await;
        let release = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                       WHERE wait_event = 'SyncRep' AND application_name = current_database()";
        client.query(release, &[]).await.expect("let it be seen");
        let committed = waiting.await.expect("the writer does not panic");
        committed.expect("commit");
        let written = write_rows(&client, OWN, 2, Fate::Commit).await;
        written.expect("write what follows it");
    }
    rig.show(scene, load, 0).await;
}

type Waiting = tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>;

async fn begin_unseen(rig: &Rig, client: &Client) -> Waiting {
    let writer = rig.client().await;
    let set = format!(
        "SET synchronous_commit = remote_apply; SET application_name = '{}'",
        rig.database.name
    );
    writer.batch_execute(&set).await.expect("set");
    let waiting = tokio::spawn(async move { write_rows(&writer, OWN, 3, Fate::Commit).await });
    let sql = "SELECT count(*) FROM pg_stat_activity
               WHERE wait_event = 'SyncRep' AND application_name = current_database()";
    wait_until("the commit waits", SOON, async || {
        let row = client.query_one(sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    waiting
}

/// Debezium's default, beside a relay that runs: no table of ours may stand in its way.
pub async fn published_by_others(scene: &Scene) {
    both_or_unmarked(scene, async |scene, pair| {
        let (rig, relay, client) = running(pair).await;
        let load = rig.load().await;
        for _ in 0..scene.pick(1, 3, 10) {
            for sql in [
                "CREATE PUBLICATION everything FOR ALL TABLES",
                "DROP PUBLICATION everything",
            ] {
                client
                    .batch_execute(sql)
                    .await
                    .expect("change publications");
                scene.ran();
                goes_on(&relay).await;
            }
        }
        rig.show(scene, load, 0).await;
    })
    .await;
}

/// A row's committed state is published, whatever its INSERT held; by replication also of a row that is gone.
pub async fn changed(scene: &Scene) {
    both_or_unmarked(scene, async |scene, pair| {
        let (rig, relay, client) = running(pair).await;
        let cutter = rig.client().await;
        let load = rig.load().await;
        let mut cuts = 0;
        for version in 0..scene.pick(40, 200, 2_000) {
            change_within(&client, version).await;
            if pair.is_streamed() {
                delete_within(&client, version).await;
                let job = "DELETE FROM outbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM outbox \
                           ORDER BY seq DESC LIMIT 5 FOR UPDATE SKIP LOCKED))";
                client.batch_execute(job).await.expect("delete rows");
            }
            if version % 20 == 10 {
                let _ = cutter.query(CUT, &[]).await;
                scene.ran();
                cuts += 1;
            }
        }
        goes_on(&relay).await;
        rig.show(scene, load, pair.repeated_by_cuts(cuts)).await;
    })
    .await;
}

/// What its INSERT holds is committed by nobody.
async fn change_within(client: &Client, version: i64) {
    let row = new_row("changed", version);
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
                  VALUES ($1, 'order', '', 'Draft', NULL)";
    let update = "UPDATE outbox SET aggregateid = $2, payload = $3::text::json WHERE id = $1";
    begin(client, &row).await;
    let done = client.execute(insert, &[&row.event_id]).await;
    done.expect("insert a row");
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&row.event_id, &row.aggregate, &payload(&row, "")];
    client.execute(update, &values).await.expect("change it");
    client.batch_execute("COMMIT").await.expect("commit");
}

async fn delete_within(client: &Client, version: i64) {
    let row = new_row("deleted", version);
    let insert = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
                  VALUES ($1, 'order', $2, 'Changed', $3::text::json)";
    begin(client, &row).await;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&row.event_id, &row.aggregate, &payload(&row, "")];
    client.execute(insert, &values).await.expect("insert a row");
    let delete = "DELETE FROM outbox WHERE id = $1";
    let done = client.execute(delete, &[&row.event_id]).await;
    done.expect("delete it");
    client.batch_execute("COMMIT").await.expect("commit");
}

fn new_row(aggregate: &str, version: i64) -> Truth {
    Truth {
        event_id: Uuid::new_v4(),
        aggregate: aggregate.to_owned(),
        version,
    }
}

/// Begins a transaction with the truth of a row.
async fn begin(client: &Client, row: &Truth) {
    client.batch_execute("BEGIN").await.expect("begin");
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&row.event_id, &row.aggregate, &row.version];
    let done = client
        .execute("INSERT INTO truth VALUES ($1, $2, $3)", &values)
        .await;
    done.expect("write the truth down");
}

/// Migrations and maintenance of others, in the same database and on the outbox itself.
pub async fn neighbours(scene: &Scene) {
    const CHANGES: [&str; 12] = [
        "CREATE TABLE neighbour (id bigint PRIMARY KEY, note text)",
        "CREATE PUBLICATION theirs FOR TABLE neighbour, outbox",
        "ALTER TABLE neighbour ADD COLUMN at timestamptz DEFAULT now()",
        "INSERT INTO neighbour SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n",
        "CREATE INDEX ON neighbour (note)",
        "ALTER PUBLICATION theirs DROP TABLE outbox",
        "ANALYZE",
        "VACUUM outbox",
        "CREATE INDEX CONCURRENTLY outbox_by_type ON outbox (aggregatetype)",
        "REINDEX TABLE CONCURRENTLY outbox",
        "DROP INDEX CONCURRENTLY outbox_by_type",
        "DROP TABLE neighbour CASCADE; DROP PUBLICATION theirs",
    ];
    both_or_unmarked(scene, async |scene, pair| {
        let (rig, relay, client) = running(pair).await;
        let load = rig.load().await;
        for sql in CHANGES {
            client
                .batch_execute(sql)
                .await
                .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            scene.ran();
            goes_on(&relay).await;
        }
        rig.show(scene, load, 0).await;
    })
    .await;
}

async fn running(pair: Pair) -> (Rig, Relay, Client) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    prepare(&client, OWN).await;
    let relay = rig.relay();
    if pair.is_streamed() {
        // What happens to a row before the slot is read is the first start's affair.
        rig.await_streaming(&client).await;
    }
    (rig, relay, client)
}

async fn goes_on(relay: &Relay) {
    let before = published(relay).await;
    await_publishing(relay, before + 50, SOON).await;
}
