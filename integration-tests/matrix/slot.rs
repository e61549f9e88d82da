//! Somebody else reads the relay's slot.

use std::process::Command;

use super::rig::{Rig, SOON, WINDOW_ROWS, await_publishing};
use super::scene::Scene;
use crate::harness::postgres::Postgres;
use crate::harness::wait_until;
use crate::harness::workspace::{self, Process};

/// The relay waits for its slot and says who reads it; the thief confirms nothing.
pub async fn slot_is_read_by_another(scene: &Scene) {
    let Some(program) = Postgres::client_program("pg_recvlogical") else {
        scene.remark("skipped: pg_recvlogical is not installed");
        return;
    };
    let pair = scene.streamed_or_unmarked();
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    // The relay owns the slot first; the thief comes while it is stopped.
    let mut relay = rig.relay();
    let load = rig.load().await;
    await_publishing(&relay, 0, SOON).await;
    assert!(relay.terminate().success());
    let slot = format!("outboxd_{}", rig.database.name);
    let mut command = Command::new(program);
    command.args([
        "--start",
        "--file=/dev/null",
        "--fsync-interval=0",
        "--status-interval=0",
    ]);
    command.args([
        "-o",
        "proto_version=1",
        "-o",
        &format!("publication_names={slot}"),
    ]);
    command.args(["--slot", &slot, "--dbname", &rig.database.url]);
    let mut thief = Process::start(&mut command, &workspace::folder("thief"), "log", "KILL");
    let probe = async || match rig.is_slot_active(&client).await {
        Some(true) => Ok(()),
        other => Err(format!("active: {other:?}")),
    };
    wait_until("the slot is taken", SOON, probe).await;
    let row = client
        .query_one(
            "SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot],
        )
        .await
        .expect("ask who reads the slot");
    let pid: String = row.get(0);
    relay.restart();
    wait_until("the relay says who reads its slot", SOON, async || {
        let status = relay.try_status()?;
        let reason = status["reason"].as_str().unwrap_or_default();
        let says = status["state"] == "waiting" && reason.contains(&slot) && reason.contains(&pid);
        says.then_some(()).ok_or(status.to_string())
    })
    .await;
    // It never confirmed anything, killed as it is: nothing was stolen.
    thief.kill();
    await_publishing(&relay, 0, SOON).await;
    scene.ran();
    // Without marks a stop before the stream has passed what the table held at first repeats some of that.
    let repeated = match pair.1 {
        "none" => WINDOW_ROWS,
        _ => 0,
    };
    rig.show(scene, load, repeated).await;
}
