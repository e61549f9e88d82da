//! Several relays of one outbox: they come and go in waves, and lose sight of the database.

use std::time::Duration;

use crate::ha::frozen::assert_marks_are_exact;
use crate::harness::load::Load;
use crate::harness::relay::Relay;
use crate::matrix::rig::{
    Pair, Rig, SOON, WINDOW_ROWS, await_publishing, published, random_moment,
};
use crate::orders::wait_for_status;

const NODES: usize = 3;
const WAVES: usize = 4;

/// Rows of each transaction in the waves.
const ROWS: usize = 20;

/// All nodes but one are killed or stopped at once, then come back; the one that is left is another each time.
pub async fn gh_01_waves_of_nodes_lose_and_reorder_nothing(mode: &'static str) {
    let rig = Rig::shared(Pair(mode, "ledger")).await;
    let load = ten_keys().start(&rig.database.url).await;
    let mut nodes = vec![rig.relay()];
    await_publishing(&nodes[0], 0, SOON).await;
    nodes.resize_with(NODES, || rig.relay());
    let mut kills = 0;
    for wave in 0..WAVES {
        let stays = (wave + 1) % NODES;
        let before = published(&nodes[stays]).await;
        for leaves in (0..NODES).filter(|node| *node != stays) {
            if wave % 2 == 0 {
                nodes[leaves].kill9();
                kills += 1;
            } else {
                assert!(nodes[leaves].terminate().success());
            }
        }
        await_publishing(&nodes[stays], before, SOON).await;
        for comes in (0..NODES).filter(|node| *node != stays) {
            nodes[comes].restart();
            // Before it has come so far, SIGTERM is not yet its own to answer.
            wait_for_status(&nodes[comes], "it is there", |_| true).await;
        }
        random_moment(Duration::from_millis(500)).await;
    }
    rig.judge(load, kills * (WINDOW_ROWS + ROWS)).await;
}

fn ten_keys() -> Load {
    Load {
        aggregates: 10,
        writers: 4,
        rows: ROWS..ROWS + 1,
        pause: Duration::from_millis(100),
        seed: fastrand::u64(..),
        ..Load::default()
    }
}

/// The leader's statements hang for longer than its lease: the other one takes over, and what the first had read or
/// sent meanwhile is neither marked by it nor published as something new.
pub async fn to_03_a_leader_whose_database_hangs_is_replaced(mode: &'static str) {
    let mut rig = Rig::shared(Pair(mode, "ledger")).await;
    let direct = rig.config.clone();
    let proxy = rig.through_proxy().await;
    let client = rig.client().await;
    let load = rig.load().await;
    let first = rig.relay();
    await_publishing(&first, 0, SOON).await;
    let second = Relay::start(&direct);
    wait_for_status(&second, "it stands by", |status| {
        status["role"] == "standby"
    })
    .await;
    proxy.set(|weather| {
        weather.to_client.is_held = true;
        weather.to_server.is_held = true;
    });
    wait_for_status(&second, "it leads", |status| status["role"] == "leader").await;
    // A walsender would be held for longer than the lease.
    proxy.clear();
    await_publishing(&second, 0, SOON).await;
    wait_for_status(&first, "it stands by", |status| status["role"] == "standby").await;
    rig.judge(load, WINDOW_ROWS).await;
    assert_marks_are_exact(&client).await;
}

/// Each renewal takes a third of the lease, and so does every other statement.
pub async fn dk_03_a_slow_renewal_stops_nothing(mode: &'static str) {
    let mut rig = Rig::shared(Pair(mode, "ledger")).await;
    rig.set("lease.ttl", "2s");
    let proxy = rig.through_proxy().await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    if mode == "replication" {
        rig.await_streaming(&rig.client().await).await;
    }
    proxy.set(|weather| {
        weather.to_client.delay = Duration::from_millis(300);
        weather.to_server.delay = Duration::from_millis(300);
    });
    let before = published(&relay).await;
    await_publishing(&relay, before + WINDOW_ROWS as u64, SOON).await;
    proxy.clear();
    rig.judge(load, 0).await;
}
