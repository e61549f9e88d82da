//! Transactions that overlap, roll back or are large: what is committed comes in the order of its commits.

use uuid::Uuid;

use super::by_ledger;
use crate::conformance::scene::{Scene, count, execute, has, insert, stop};
use crate::harness::load::write_rows;
use crate::harness::order_writer::Fate;

/// More than a walsender keeps in memory where `spill_early` was.
const LARGE_ROWS: usize = 5_000;

/// Both transactions have ended before anybody reads them, so their numbers say one order and their commits another.
pub async fn pq_01_commit_order_wins(mode: &'static str) {
    let scene = Scene::new(by_ledger(mode)).await;
    let mut relay = scene.start_steady().await;
    insert(&scene.client, "order-2", 1).await;
    scene.judge().await;
    stop(&mut relay);
    let (first, second) = (scene.database.client().await, scene.database.client().await);
    execute(&first, "BEGIN").await;
    insert(&first, "order-1", 2).await;
    execute(&second, "BEGIN").await;
    insert(&second, "order-1", 1).await;
    execute(&second, "COMMIT").await;
    execute(&first, "COMMIT").await;
    relay.restart();
    scene.judge().await;
    scene.wait_until_confirmed().await;
    let sql = "SELECT count(*) FROM pg_replication_slots
               WHERE database = current_database() AND restart_lsn <= confirmed_flush_lsn";
    assert_eq!(count(&scene.client, sql).await, 1);
}

/// One spilled transaction is rolled back, the next one is committed.
pub async fn pq_06_a_large_rollback_leaves_what_is_committed(mode: &'static str) {
    let scene = Scene::new(by_ledger(mode)).await;
    spill_early(&scene).await;
    let mut relay = scene.start_steady().await;
    for (aggregate, fate) in [
        (1, Fate::Rollback),
        (2, Fate::Commit),
        (2, Fate::Rollback),
        (1, Fate::Commit),
    ] {
        let written = write_rows(&scene.client, aggregate, LARGE_ROWS, fate).await;
        written.expect("write rows");
    }
    scene.judge_to_the_end(&mut relay).await;
    assert_eq!(scene.reader().read_to_end().len(), 2 * LARGE_ROWS);
}

/// Two spilled transactions write one aggregate in turn, and the one that began later is committed first.
pub async fn pq_07_interleaved_transactions_stay_whole(mode: &'static str) {
    let scene = Scene::new(by_ledger(mode)).await;
    spill_early(&scene).await;
    let mut relay = scene.start_steady().await;
    let (first, second) = (scene.database.client().await, scene.database.client().await);
    execute(&first, "BEGIN").await;
    execute(&second, "BEGIN").await;
    let mut last = Uuid::nil();
    for version in 1..=300 {
        insert(&first, "order-1", 300 + version).await;
        last = insert(&second, "order-1", version).await;
    }
    execute(&second, "COMMIT").await;
    if scene.pair.is_polled() {
        // Rows that become visible together are read by their numbers; writers of one aggregate lock it for that.
        scene.wait_for_row(&mut scene.reader(), last).await;
    }
    execute(&first, "COMMIT").await;
    scene.judge_to_the_end(&mut relay).await;
}

/// Nobody may take the highest number that was read for the end of what is committed below it.
pub async fn wm_01_commits_against_their_numbers_are_all_delivered(mode: &'static str) {
    let scene = Scene::new(by_ledger(mode)).await;
    let mut relay = scene.start_steady().await;
    let mut reader = scene.reader();
    let mut open = Vec::new();
    for number in 0..4 {
        let client = scene.database.client().await;
        execute(&client, "BEGIN").await;
        let row = insert(&client, &format!("order-{number}"), 1).await;
        open.push((client, row));
    }
    for (number, end) in [(3, "COMMIT"), (2, "ROLLBACK"), (1, "COMMIT"), (0, "COMMIT")] {
        let (client, row) = &open[number];
        execute(client, end).await;
        if end == "COMMIT" {
            scene.wait_for_row(&mut reader, *row).await;
        }
    }
    assert!(!has(reader.read_to_end(), open[2].1));
    scene.judge_to_the_end(&mut relay).await;
}

/// Makes walsenders of this database write transactions above 64 kB to disk while they decode.
async fn spill_early(scene: &Scene) {
    let name = &scene.database.name;
    let sql = format!("ALTER DATABASE \"{name}\" SET logical_decoding_work_mem = '64kB'");
    execute(&scene.client, &sql).await;
}
