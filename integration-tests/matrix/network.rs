//! What happens between the relay and PostgreSQL.

use std::time::{Duration, Instant};

use super::rig::{Pair, Rig, SOON, await_publishing, published};
use super::scene::{Scene, both};

/// A relay that backs off further with each cut would publish next to nothing.
pub async fn cut_again_and_again(scene: &Scene) {
    both(scene, cut).await;
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
    // A relay that has the processors for itself uses nearly all of them.
    let share = scene.pick(12, 2, 2);
    scene.require(fruitful * share > cuts, || {
        format!("only {fruitful} of {cuts} pauses between cuts were used")
    });
    rig.show(scene, load, 0).await;
}
