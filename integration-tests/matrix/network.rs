//! What happens between the relay and PostgreSQL.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::rig::{Pair, Rig, SOON, TRANSACTION_ROWS, WINDOW_ROWS, await_publishing, published};
use super::scene::{Scene, both_or_unmarked};
use crate::harness::proxy::{Flow, Proxy};
use crate::harness::relay::Relay;
use crate::harness::{wait_until, workspace};

/// What the relay asks the server to wait for it, and as much as the server needs to notice.
const WALSENDER_ENDS_WITHIN: Duration = Duration::from_secs(35);

/// The longest pause between attempts, and the attempt.
const PUBLISHES_AGAIN_WITHIN: Duration = Duration::from_secs(20);

/// A relay that backs off further with each cut would publish next to nothing.
pub async fn cut_again_and_again(scene: &Scene) {
    both_or_unmarked(scene, cut).await;
}

async fn cut(scene: &Scene, pair: Pair) {
    let mut rig = Rig::shared(pair).await;
    let proxy = rig.through_proxy().await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let started_at = Instant::now();
    let (mut cuts, mut fruitful) = (0, 0);
    let lasts = Duration::from_secs(scene.pick(18, 40, 300));
    while started_at.elapsed() < lasts {
        let before = published(&relay).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1_000..2_000))).await;
        fruitful += usize::from(published(&relay).await > before);
        proxy.cut();
        scene.ran();
        cuts += 1;
    }
    // A relay that has the processors for itself uses nearly all of them; beside other tests one will do.
    let share = scene.pick(cuts + 1, cuts + 1, 2);
    scene.require(fruitful * share > cuts, || {
        format!("only {fruitful} of {cuts} pauses between cuts were used")
    });
    rig.show(scene, load, pair.repeated_by_cuts(cuts)).await;
}

/// Where nothing arrives any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Both,
    ToClient,
    ToServer,
}

/// Connections stay open and nothing arrives: both ways, then each way alone.
pub async fn black_hole(scene: &Scene) {
    both_or_unmarked(scene, vanish).await;
}

async fn vanish(scene: &Scene, pair: Pair) {
    let mut rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let proxy = rig.through_proxy().await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    for (way, seconds) in scene.pick(
        vec![(Way::Both, 20)],
        vec![(Way::Both, 45), (Way::ToClient, 20), (Way::ToServer, 20)],
        vec![(Way::Both, 120), (Way::ToClient, 120), (Way::ToServer, 120)],
    ) {
        let began_at = Instant::now();
        proxy.set(|weather| {
            weather.to_client.is_held = way != Way::ToServer;
            weather.to_server.is_held = way != Way::ToClient;
        });
        scene.ran();
        if pair.is_streamed() && way != Way::ToClient && seconds > 40 {
            await_walsender_end(&rig, &client).await;
            scene.took(
                "the old walsender ends",
                began_at.elapsed(),
                WALSENDER_ENDS_WITHIN,
            );
        }
        tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(began_at.elapsed())).await;
        let before = published(&relay).await;
        proxy.clear();
        let took = await_publishing(&relay, before + 100, SOON).await;
        scene.took("publishing again", took, PUBLISHES_AGAIN_WITHIN);
    }
    rig.show(scene, load, 0).await;
}

async fn await_walsender_end(rig: &Rig, client: &tokio_postgres::Client) {
    wait_until("the walsender has ended", SOON, async || {
        match rig.is_slot_active(client).await {
            Some(false) => Ok(()),
            other => Err(format!("active: {other:?}")),
        }
    })
    .await;
}

/// Latency, single bytes, a thin line: no timeout of ours takes them for a failure.
pub async fn slow(scene: &Scene) {
    both_or_unmarked(scene, crawl).await;
}

async fn crawl(scene: &Scene, pair: Pair) {
    let mut rig = Rig::shared(pair).await;
    let proxy = rig.through_proxy().await;
    let load = rig.load_of(0..10).await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let before = published(&relay).await;
    await_publishing(&relay, before, SOON).await;
    if pair.is_streamed() {
        // The first session, which reads the table, ends in order.
        rig.await_streaming(&rig.client().await).await;
    }
    let sessions = relay.metric("outboxd_sessions_total").await;
    let flows = [
        Flow {
            delay: Duration::from_millis(200),
            ..Flow::default()
        },
        Flow {
            chunk_bytes: 1,
            ..Flow::default()
        },
        Flow {
            bytes_per_second: 12_500,
            ..Flow::default()
        },
    ];
    for flow in flows {
        proxy.set(|weather| (weather.to_client, weather.to_server) = (flow, flow));
        scene.ran();
        tokio::time::sleep(Duration::from_secs(scene.pick(5, 12, 60))).await;
    }
    let after = relay.metric("outboxd_sessions_total").await;
    scene.require(sessions == after, || {
        format!("{pair:?}: sessions ended: {sessions:?}, then {after:?}")
    });
    proxy.clear();
    rig.show(scene, load, 0).await;
}

/// The last confirmation of an orderly stop never arrives.
pub async fn last_confirmation_lost(scene: &Scene) {
    let mut rig = Rig::shared(scene.streamed()).await;
    let client = rig.client().await;
    let proxy = rig.through_proxy().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    let stops = scene.pick(2, 8, 20);
    for _ in 0..stops {
        await_publishing(&relay, 0, SOON).await;
        rig.await_streaming(&client).await;
        proxy.set(|weather| {
            weather.is_for_replication = true;
            weather.to_server.is_lost = true;
        });
        relay.terminate();
        scene.ran();
        proxy.clear();
        proxy.cut();
        relay.restart();
    }
    rig.show(scene, load, stops * (WINDOW_ROWS + TRANSACTION_ROWS))
        .await;
}

/// The name of the server means another address, then none, then the first one again.
pub async fn name_moves(scene: &Scene) {
    tokio::join!(
        move_name(scene, scene.streamed()),
        move_name(scene, scene.polled())
    );
}

async fn move_name(scene: &Scene, pair: Pair) {
    let mut rig = Rig::shared(pair).await;
    let addresses = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
    let port = workspace::free_port();
    let to = rig.database.port();
    let proxies = [
        Proxy::start_at(addresses[0], port, to).await,
        Proxy::start_at(addresses[1], port, to).await,
    ];
    let url = format!(
        "postgres://postgres@database.test:{port}/{}?sslmode=disable",
        rig.database.name
    );
    rig.set("source.url", url.as_str());
    let hosts = workspace::folder("hosts").join("hosts");
    let point_to = |address: Option<Ipv4Addr>| {
        let line = address.map(|address| format!("{address} database.test\n"));
        let text = format!("127.0.0.1 localhost\n{}", line.unwrap_or_default());
        fs::write(&hosts, text).expect("write the hosts");
    };
    point_to(Some(addresses[0]));
    let script = r#"mount --bind "$0" /etc/hosts && exec "$@""#;
    let file = hosts.to_str().expect("folders of this run are UTF-8");
    let relay = Relay::start_under(&rig.config, &["unshare", "-m", "sh", "-c", script, file]);
    let load = rig.load().await;
    await_publishing(&relay, 0, SOON).await;
    for (from, to) in [(0, 1), (1, 0)] {
        proxies[from].close();
        point_to(None);
        tokio::time::sleep(Duration::from_secs(scene.pick(1, 3, 20))).await;
        point_to(Some(addresses[to]));
        proxies[to].open();
        scene.ran();
        let before = published(&relay).await;
        let took = await_publishing(&relay, before + 100, SOON).await;
        scene.took("publishing again", took, PUBLISHES_AGAIN_WITHIN);
    }
    rig.show(scene, load, 0).await;
}
