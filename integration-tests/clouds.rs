//! What clouds do to connections to Kafka: a way that forgets those on which nothing passes, as NAT and load balancers do.

use std::time::{Duration, Instant};

use crate::harness::SOON;
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::orders::Orders;

/// Azure: four minutes.
const FORGETS_AFTER: Duration = Duration::from_secs(6);
/// Below it, as the default is below Azure's.
const IDLE_MAX: &str = "4000";
const SILENCE: Duration = Duration::from_secs(9);
/// A new connection, and what a busy machine adds; without it `socket.timeout.ms`, ten seconds.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Closed by the relay in time, a connection is not missed: no row waits, and nothing is told as an outage or a cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_forgets_idle_connections_delays_no_burst() {
    let (kafka, proxy) = Kafka::start_behind_proxy().await;
    let mut orders = Orders::on(&kafka, Postgres::shared(USUAL).await, "nat").await;
    orders.config.migrate();
    let brokers = [format!("127.0.0.1:{}", proxy.port)];
    orders.config = orders
        .config
        .set("kafka.brokers", toml_edit::Array::from_iter(brokers))
        .set("log.level", "info,outboxd::publish=debug")
        .kafka_property("connections.max.idle.ms", IDLE_MAX);
    let relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(1).await).await;
    proxy.set(|weather| weather.forgets_after = Some(FORGETS_AFTER));
    for _ in 0..3 {
        tokio::time::sleep(SILENCE).await;
        let before = orders.published().len();
        let rows = orders.insert(5).await;
        let committed_at = Instant::now();
        while orders.published().len() == before && committed_at.elapsed() < SOON {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = committed_at.elapsed();
        eprintln!("the first row of a burst came after {took:?}");
        assert!(took < FIRST_WITHIN, "it took {took:?}");
        orders.wait_for(&rows).await;
    }
    let log = relay.log();
    for text in [
        " WARN ",
        " ERROR ",
        "does not answer",
        "unreachable",
        "was closed amid",
    ] {
        assert!(!log.contains(text), "`{text}` in {log}");
    }
    let status = relay.status().await;
    assert_eq!(status["kafka"]["is_up"], true, "{status}");
}
