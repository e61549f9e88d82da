//! What happens to Kafka: killed, frozen, slow, without its replicas.

use std::time::{Duration, Instant};

use super::pair::Both;
use super::plain::Plain;
use super::rig::{Rig, SOON, WINDOW_ROWS, published};
use super::scene::Scene;
use crate::harness::cluster::{BROKERS, Cluster};
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::topic::TopicReader;
use crate::harness::wait_until;

/// Killed for a moment each time, then once for longer than the relay stays on its slot.
pub async fn broker_away(scene: &Scene) {
    let mut kafka = Kafka::start();
    let both = Both::new(scene, Postgres::shared(USUAL).await, &kafka).await;
    for pause in scene.pick(vec![0, 0], vec![0, 5, 40], vec![5, 3600]) {
        kafka.kill();
        scene.ran();
        let settling = pause.min(60);
        tokio::time::sleep(Duration::from_secs(settling)).await;
        let settled = both.rss_mib();
        tokio::time::sleep(Duration::from_secs(pause - settling)).await;
        for load in &both.loads {
            load.progress(50, SOON).await;
        }
        if pause > settling {
            let ended = both.rss_mib();
            scene.remark(format!(
                "{settled:?} MiB after {settling} s without a broker, {ended:?} after {pause} s"
            ));
        }
        kafka.restart();
        both.await_publishing(0).await;
    }
    both.judge(scene, 0).await;
}

pub async fn broker_frozen(scene: &Scene) {
    let mut kafka = Kafka::start();
    let both = Both::new(scene, Postgres::shared(USUAL).await, &kafka).await;
    kafka.freeze();
    scene.ran();
    tokio::time::sleep(Duration::from_secs(scene.pick(20, 20, 120))).await;
    kafka.thaw();
    kafka.await_leaders().await;
    // Fenced for longer than an election takes, it costs what is in flight.
    both.judge(scene, WINDOW_ROWS).await;
}

/// The broker appends, its answer is lost and the connection with it: librdkafka sends again, the broker knows it.
pub async fn acknowledgements_lost(scene: &Scene) {
    let (kafka, proxy) = Kafka::start_behind_proxy().await;
    let both = Both::behind_proxy(scene, &kafka, &proxy).await;
    let topics = both.rigs.each_ref().map(|rig| rig.config.topic_of("order"));
    let mut readers = topics.each_ref().map(|topic| kafka.reader(&[topic]));
    // A producer that has just started sends one record to each partition and waits for its acknowledgement.
    both.await_publishing(100).await;
    for _ in 0..scene.pick(5, 20, 100) {
        both.await_publishing(0).await;
        // Counted first: soon after, the windows are full and the logs grow no more.
        let before = readers.each_mut().map(records);
        proxy.set(|weather| weather.to_client.is_lost = true);
        for (reader, before) in readers.iter_mut().zip(before) {
            wait_until("the broker has appended", SOON, async || {
                match records(reader) {
                    now if now > before => Ok(()),
                    now => Err(now),
                }
            })
            .await;
        }
        proxy.cut();
        proxy.clear();
        scene.ran();
    }
    both.judge(scene, 0).await;
}

fn records(reader: &mut TopicReader) -> usize {
    tokio::task::block_in_place(|| reader.read_to_end().len())
}

/// Every answer comes late; the broker has appended long before.
pub async fn broker_slow(scene: &Scene) {
    let (kafka, proxy) = Kafka::start_behind_proxy().await;
    let both = Both::behind_proxy(scene, &kafka, &proxy).await;
    let mut plain = Plain::start(&kafka, &proxy).await;
    for seconds in scene.pick(vec![2], vec![2, 8], vec![2, 8, 30]) {
        proxy.set(|weather| weather.to_client.delay = Duration::from_secs(seconds));
        scene.ran();
        watch_ages(scene, &both, &mut plain, Duration::from_secs(seconds)).await;
        proxy.clear();
        both.await_publishing(100).await;
    }
    both.judge(scene, 0).await;
}

/// Answers that come late, one behind the other, delay a row by two of them more than a plain producer's record at most.
async fn watch_ages(scene: &Scene, both: &Both, plain: &mut Plain, delay: Duration) {
    let ends_at = Instant::now() + 3 * delay + Duration::from_secs(5);
    let [streamed, polled] = both.rigs.each_ref().map(async |rig| {
        let (client, mut oracle) = (rig.client().await, rig.oracle().await);
        oldest_until(ends_at, async || rig.oldest_age(&client, &mut oracle).await).await
    });
    let expected = oldest_until(ends_at, async || plain.oldest_age());
    let (streamed, polled, expected) = tokio::join!(streamed, polled, expected);
    scene.remark(format!(
        "{} s late, a plain producer's oldest record: {:.1} s",
        delay.as_secs(),
        expected.as_secs_f64()
    ));
    for (rig, oldest) in both.rigs.iter().zip([streamed, polled]) {
        let what = format!("the oldest row, {} s late, {}", delay.as_secs(), rig.pair.0);
        scene.took(&what, oldest, expected + 2 * delay + Duration::from_secs(2));
    }
}

async fn oldest_until(ends_at: Instant, mut age: impl AsyncFnMut() -> Duration) -> Duration {
    let mut oldest = Duration::ZERO;
    while Instant::now() < ends_at {
        tokio::time::sleep(Duration::from_millis(500)).await;
        oldest = oldest.max(age().await);
    }
    oldest
}

/// Each broker in turn, over and over.
pub async fn brokers_killed_in_turn(scene: &Scene) {
    roll(scene, scene.pick(1, 1, 10), Kafka::kill).await;
}

/// An orderly stop moves the leaders away first.
pub async fn brokers_stopped_in_turn(scene: &Scene) {
    roll(scene, scene.pick(1, 1, 5), Kafka::stop).await;
}

async fn roll(scene: &Scene, times: usize, end: fn(&mut Kafka)) {
    let mut cluster = Cluster::start();
    let both = Both::on_cluster(scene, &cluster, 3, &[("min.insync.replicas", "2")]).await;
    for number in 0..times * BROKERS {
        let broker = &mut cluster.brokers[number % BROKERS];
        end(broker);
        scene.ran();
        both.await_publishing(100).await;
        broker.restart();
        for rig in &both.rigs {
            await_replicas(&cluster, rig, BROKERS).await;
        }
    }
    both.judge(scene, 0).await;
}

/// Waits until every partition has so many replicas in sync: the next kill must not take the last but one.
async fn await_replicas(cluster: &Cluster, rig: &Rig, replicas: usize) {
    use rdkafka::consumer::Consumer;
    let topic = rig.config.topic_of("order");
    let consumer: rdkafka::consumer::BaseConsumer = cluster.brokers[0]
        .client()
        .create()
        .expect("a consumer of known settings");
    wait_until("all replicas are in sync", 2 * SOON, async || {
        let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(2));
        let metadata = metadata.map_err(|error| error.to_string())?;
        let partitions = metadata.topics()[0].partitions();
        let fewest = partitions.iter().map(|part| part.isr().len()).min();
        match fewest {
            Some(fewest) if fewest >= replicas => Ok(()),
            fewest => Err(format!("{fewest:?}")),
        }
    })
    .await;
}

/// One of three brokers is away and the topic asks for three: nothing may be written, and no row is to blame.
pub async fn too_few_replicas(scene: &Scene) {
    let mut cluster = Cluster::start();
    let both = Both::on_cluster(scene, &cluster, 3, &[("min.insync.replicas", "3")]).await;
    cluster.brokers[2].kill();
    let back_at = Instant::now() + Duration::from_secs(scene.pick(15, 20, 60));
    scene.ran();
    for relay in &both.relays {
        let named = async || {
            let status = relay.try_status()?;
            let reason = status["reason"].as_str().unwrap_or_default();
            match reason.contains("NotEnoughReplicas") {
                true => Ok(()),
                false => Err(reason.to_owned()),
            }
        };
        wait_until("the status says what the brokers say", SOON, named).await;
    }
    tokio::time::sleep_until(back_at.into()).await;
    cluster.brokers[2].restart();
    both.await_publishing(100).await;
    for relay in &both.relays {
        let blocked = relay.metric("outboxd_blocked_aggregates_total").await;
        scene.require(blocked.unwrap_or_default() == 0.0, || {
            "a row was blamed".into()
        });
    }
    both.judge(scene, 0).await;
}

/// Partitions without replicas on a broker that is away: their aggregates wait, all others flow.
pub async fn partitions_away(scene: &Scene) {
    let mut cluster = Cluster::start();
    let both = Both::on_cluster(scene, &cluster, 1, &[]).await;
    cluster.brokers[2].kill();
    scene.ran();
    tokio::time::sleep(Duration::from_secs(scene.pick(10, 20, 60))).await;
    for relay in &both.relays {
        let before = published(relay).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let rows = published(relay).await - before;
        scene.require(rows > 0, || "the other partitions stand still too".into());
    }
    cluster.brokers[2].restart();
    // What the broker had appended and not acknowledged when it was killed is sent again.
    both.judge(scene, WINDOW_ROWS).await;
}
