//! Fields too large for a record, and too large for PostgreSQL itself to send.

use super::rig::{RSS_MAX, Rig, counts, insert};
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::topic::Read;
use crate::harness::wait_until;
use crate::orders::ARRIVAL;

const TABLE: &str = "\
    CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload bytea, extra text,
        sent_at timestamptz, seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE)";

/// Printed as hex it is longer than the 1 GiB that PostgreSQL can allocate.
const UNSENDABLE_BYTES: u64 = 540 << 20;

fn insert_large(id: &str, bytes: u64) -> String {
    insert(
        id,
        "payload",
        &format!("convert_to(repeat('x', {bytes}), 'UTF8')"),
    )
}

fn follow(id: &str, leader: &str) -> String {
    insert(id, "aggregateid", &format!("'{leader}'"))
}

/// The row at fault and its follower stay behind, everything else is published once.
fn assert_only_large_is_blocked(reads: &[Read], relay: &Relay, published: &[&str], bytes: u64) {
    let counts = counts(reads);
    let expected: Vec<_> = published.iter().map(|id| (*id, 1)).collect();
    let mut found: Vec<_> = counts.into_iter().collect();
    found.sort_by_key(|(id, _)| published.iter().position(|known| known == id));
    assert_eq!(found, expected);
    let reason = format!("the column `payload` has {bytes} bytes");
    let log = relay.log();
    assert!(log.contains(&reason), "`{reason}` is not in\n{log}");
    let rss = relay.rss_bytes_max();
    assert!(rss <= RSS_MAX, "{} MiB", rss >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_no_record_can_carry_is_never_fetched() {
    let postgres = Postgres::shared(USUAL).await;
    let bytes = 70 << 20;
    for pair in [("replication", "ledger"), ("polling", "sent_at")] {
        let mut rig = Rig::new(postgres, pair, TABLE, |config| config).await;
        let relay = Relay::start(&rig.config);
        rig.pass("first").await;
        let unused = insert("unused", "extra", &format!("repeat('x', {bytes})"));
        rig.run(&(insert_large("large", bytes) + &follow("follower", "large") + &unused))
            .await;
        let reads = rig.pass("last").await;
        assert_only_large_is_blocked(&reads, &relay, &["first", "unused", "last"], bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_postgresql_cannot_send_is_passed_by_the_table() {
    pass_unsendable(Postgres::shared(USUAL).await, "ledger").await;
}

/// Such rows, one in the middle of its transaction, and a transaction that was open meanwhile.
async fn pass_unsendable(postgres: &Postgres, mark: &str) {
    let mut rig = Rig::new(postgres, ("replication", mark), TABLE, |config| config).await;
    let relay = Relay::start(&rig.config);
    rig.pass("first").await;
    let writer = rig.database.client().await;
    let open = format!("BEGIN; {}", insert("late", "type", "'placed'"));
    writer.batch_execute(&open).await.expect("insert");
    let script = format!(
        "BEGIN; {} {} {} {} COMMIT;",
        insert("before", "type", "'placed'"),
        insert_large("large", UNSENDABLE_BYTES),
        follow("follower", "large"),
        insert("after", "type", "'placed'"),
    );
    rig.run(&script).await;
    let text = "the slot cannot send a transaction";
    relay.wait_for_log(text, ARRIVAL).await;
    rig.wait_for("after").await;
    rig.pass("meanwhile").await;
    let passed = "the slot has passed";
    assert!(!relay.log().contains(passed), "passed an open writer");
    writer.batch_execute("COMMIT").await.expect("commit");
    relay.wait_for_log(passed, ARRIVAL).await;
    rig.wait_for("late").await;
    let reads = rig.pass("last").await;
    let published = ["first", "before", "after", "meanwhile", "late", "last"];
    assert_only_large_is_blocked(&reads, &relay, &published, UNSENDABLE_BYTES);
    await_confirmed(&rig).await;
    let fails = relay.log().matches(text).count();
    assert_eq!(fails, 1, "the slot came back to it");
}

/// Waits until the slot has passed everything that was written so far.
async fn await_confirmed(rig: &Rig) {
    let client = rig.database.client().await;
    let row = client
        .query_one("SELECT pg_current_wal_lsn()::text", &[])
        .await
        .expect("a position");
    let position: String = row.get(0);
    let sql = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn, confirmed_flush_lsn::text
               FROM pg_replication_slots WHERE database = current_database()";
    wait_until("the slot is confirmed", ARRIVAL, async || {
        let row = client.query_one(sql, &[&position]).await.expect("a slot");
        match row.get(0) {
            true => Ok(()),
            false => Err(format!("{} of {position}", row.get::<_, String>(1))),
        }
    })
    .await;
}
