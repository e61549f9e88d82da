//! The lock of `outboxd migrate`: a relay that finds everything does not need it, and nobody keeps it for ever.

use std::process::Command;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{OUTBOXD, Relay};
use crate::harness::workspace::{self, Process};
use crate::harness::{SOON, wait_until};
use crate::orders::Orders;

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_migration_neither_stops_a_relay_from_starting_nor_keeps_the_lock() {
    let orders = Orders::create(Postgres::shared(USUAL).await, "migration", |config| config).await;
    // The migration waits for this lock with its own in its hands.
    orders.run("BEGIN; LOCK TABLE outboxd.schema_version").await;
    let folder = workspace::folder("migration");
    let mut command = Command::new(OUTBOXD);
    command
        .args(["migrate", "--config"])
        .arg(orders.config.write());
    let mut migration = Process::start(&mut command, &folder, "log", "KILL");
    let other = orders.database.client().await;
    let lock_is = async |held: bool| {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = \
                   (SELECT oid FROM pg_database WHERE datname = current_database())";
        match other
            .query_one(sql, &[])
            .await
            .expect("look at the locks")
            .get::<_, i64>(0)
        {
            count if (count > 0) == held => Ok(()),
            count => Err(format!("{count} hold it")),
        }
    };
    wait_until("the migration has its lock", SOON, async || {
        lock_is(true).await
    })
    .await;
    migration.signal("STOP");
    orders.run("ROLLBACK").await;
    let _relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(20).await).await;
    assert_eq!(
        lock_is(true).await,
        Ok(()),
        "the relay was to start beside the lock"
    );
    // The server ends a session that holds it and says nothing.
    wait_until("the lock is free", SOON, async || lock_is(false).await).await;
}
