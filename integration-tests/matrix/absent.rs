//! Neither PostgreSQL nor Kafka is there when the relay starts.

use super::rig::{Rig, SOON, await_publishing};
use super::scene::Scene;
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, Stop, USUAL};
use crate::harness::wait_until;

/// The relay waits for both and says so.
pub async fn servers_come_later(scene: &Scene) {
    let (mut postgres, mut kafka) = (Postgres::start(USUAL), Kafka::start());
    let rigs = [
        Rig::new(scene.streamed(), &postgres, &kafka).await,
        Rig::new(scene.polled(), &postgres, &kafka).await,
    ];
    postgres.stop(Stop::Fast);
    kafka.kill();
    let mut relays = rigs.each_ref().map(Rig::relay);
    for relay in &relays {
        wait_until("the relay says what it waits for", SOON, async || {
            let status = relay.try_status()?;
            let (live, _) = relay.get("/livez")?;
            let error = status["last_error"]["text"].as_str().unwrap_or_default();
            let waits = status["state"] == "waiting" && error.contains("PostgreSQL");
            (waits && live == 200)
                .then_some(())
                .ok_or(status.to_string())
        })
        .await;
    }
    postgres.restart();
    let loads = [rigs[0].load().await, rigs[1].load().await];
    for load in &loads {
        load.progress(50, SOON).await;
    }
    scene.ran();
    for relay in &mut relays {
        scene.require(relay.is_running(), || "a relay has ended".into());
    }
    kafka.restart();
    for relay in &relays {
        await_publishing(relay, 0, SOON).await;
    }
    for (rig, load) in rigs.iter().zip(loads) {
        rig.show(scene, load, 0).await;
    }
}
