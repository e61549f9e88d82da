//! Brokers that are away, frozen or behind a way that is cut, with large rows in flight: no row is blamed.

use std::time::Instant;

use super::*;

/// Longer than it takes to prove that a broker cuts a row off.
const LASTS: Duration = Duration::from_secs(10);

/// A relay with large rows in flight to a broker that would take them.
struct Scene {
    orders: Orders,
    relay: Relay,
    written: Written,
}

impl Scene {
    /// Begins while `kafka` is well, by the address that the relay is to use.
    async fn begin(kafka: &Kafka, port: u16) -> Self {
        let mut orders = orders(kafka, "away").await;
        let brokers = toml_edit::Array::from_iter([format!("127.0.0.1:{port}")]);
        orders.config = orders.config.set("kafka.brokers", brokers);
        orders.config.migrate();
        let relay = Relay::start(&orders.config);
        let mut written = Written(Vec::new());
        written.write(&orders, "a", 10).await;
        orders.wait_for(&written.ids()).await;
        Self {
            orders,
            relay,
            written,
        }
    }

    async fn write(&mut self) {
        for number in 0..12 {
            let aggregate = format!("order-{}", number % 3);
            let bytes = if number % 4 == 0 { 2_000_000 } else { 10_000 };
            self.written.write(&self.orders, &aggregate, bytes).await;
        }
    }

    /// All rows arrive in order, and none was blamed.
    async fn end(self) {
        self.orders.wait_for(&self.written.ids()).await;
        self.written.assert_in_order(&self.orders);
        assert_blames_nothing(&self.orders, &self.relay, Duration::ZERO).await;
        assert!(
            !self.relay.log().contains("trying again"),
            "{}",
            self.relay.log()
        );
        assert_eq!(self.orders.published().len(), self.written.0.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_again_and_again_blames_no_row() {
    let mut kafka = Kafka::start();
    let mut scene = Scene::begin(&kafka, kafka.port).await;
    for _ in 0..4 {
        scene.write().await;
        kafka.kill();
        scene.write().await;
        kafka.restart();
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_frozen_blames_no_row() {
    let mut kafka = Kafka::start();
    let mut scene = Scene::begin(&kafka, kafka.port).await;
    kafka.freeze();
    scene.write().await;
    assert_blames_nothing(&scene.orders, &scene.relay, LASTS).await;
    kafka.thaw();
    kafka.await_leaders().await;
    scene.end().await;
}

/// The way carries so little that a large row never gets through before the next cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_is_slow_and_cut_again_and_again_blames_no_row() {
    let (kafka, proxy) = Kafka::start_behind_proxy().await;
    let mut scene = Scene::begin(&kafka, proxy.port).await;
    for pause in [150, 1_500] {
        proxy.set(|weather| weather.to_server.bytes_per_second = 500_000);
        scene.write().await;
        let began_at = Instant::now();
        while began_at.elapsed() < LASTS {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            proxy.cut();
        }
        assert_blames_nothing(&scene.orders, &scene.relay, Duration::ZERO).await;
        proxy.clear();
        scene.orders.wait_for(&scene.written.ids()).await;
    }
    scene.end().await;
}

/// The broker answers what a connection begins with, and is gone: the proxy resets each as soon as it is in use.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_lets_nobody_stay_blames_no_row() {
    let (kafka, proxy) = Kafka::start_behind_proxy().await;
    let mut scene = Scene::begin(&kafka, proxy.port).await;
    proxy.close();
    scene.write().await;
    assert_blames_nothing(&scene.orders, &scene.relay, LASTS).await;
    proxy.open();
    scene.end().await;
}
