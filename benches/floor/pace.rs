//! Latency at a steady pace: one writer commits single rows, a consumer sees them arrive.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use outboxd::demo::DemoMode;
use outboxd::demo::latency::Latency;
use outboxd::demo::postgres::{Server, tail};
use outboxd::demo::reader::Reader;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::ROWS_PER_SECOND;
use crate::database::{self, Relay, SLOT};
use crate::drain::Transport;
use crate::kafka::Kafka;
use crate::process::Process;

const SECONDS: u32 = 10;
/// Rows of this first time warm caches and connections up and are not counted.
const WARM_UP: Duration = Duration::from_secs(2);
const WRITERS: u32 = 4;
const INSERT: &str = "INSERT INTO public.outbox (id, aggregatetype, aggregateid, type, payload)
    VALUES ($1, 'order', $2, 'OrderPlaced', json_build_object('version', 1, 'note', repeat('x', 125)))";

/// Measures from COMMIT's answer at the writer to the record's arrival at a consumer, on one clock.
pub async fn latency(
    server: &Server,
    kafka: &Kafka,
    mode: DemoMode,
    folder: &Path,
) -> anyhow::Result<Latency> {
    let database = format!("pace_{:08x}", fastrand::u32(..));
    let client = database::prepare(server, kafka, &database, folder).await?;
    let topic = kafka.topic().await?;
    let reader = Reader::start(&topic)?;
    let relay = Relay {
        server,
        database: &database,
        slot: SLOT,
        mode,
        transport: Transport::Tcp,
    };
    let mut process = relay.start(&topic, folder)?;
    insert(&client).await?;
    wait_for(&reader, 1, &mut process, folder).await?;
    let since = Instant::now() + WARM_UP;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(server.connect(&database).await?, writer));
    }
    let mut committed_at: HashMap<Uuid, Instant> = HashMap::new();
    while let Some(written) = writers.join_next().await {
        committed_at.extend(written??);
    }
    wait_for(&reader, committed_at.len() + 1, &mut process, folder).await?;
    process.stop()?;
    let seen = reader.finish().await?;
    topic.remove().await;
    client
        .batch_execute(&format!("SELECT pg_drop_replication_slot('{SLOT}')"))
        .await?;
    let counted = committed_at.iter().filter(|(_, at)| **at >= since);
    let latencies = counted.map(|(id, at)| seen.arrivals[id].saturating_duration_since(*at));
    Latency::of(latencies.collect()).context("no row was counted")
}

async fn wait_for(
    reader: &Reader,
    rows: usize,
    process: &mut Process,
    folder: &Path,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while reader.seen().arrivals.len() < rows {
        process
            .ensure_runs()
            .with_context(|| tail(&folder.join("relay.log")))?;
        anyhow::ensure!(
            Instant::now() < deadline,
            "rows stay away: {}",
            tail(&folder.join("relay.log"))
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Commits one row at each tick of this writer's share of the pace.
async fn write(client: Client, writer: u32) -> anyhow::Result<HashMap<Uuid, Instant>> {
    let pause = Duration::from_secs(1) * WRITERS / ROWS_PER_SECOND;
    tokio::time::sleep(pause * writer / WRITERS).await;
    let mut ticks = tokio::time::interval(pause);
    let mut committed_at = HashMap::new();
    for _ in 0..SECONDS * ROWS_PER_SECOND / WRITERS {
        ticks.tick().await;
        let id = insert(&client).await?;
        committed_at.insert(id, Instant::now());
    }
    Ok(committed_at)
}

async fn insert(client: &Client) -> Result<Uuid, tokio_postgres::Error> {
    let id = Uuid::new_v4();
    let aggregate = format!("o-{}", fastrand::u32(..1000));
    client.execute(INSERT, &[&id, &aggregate]).await?;
    Ok(id)
}
