//! TLS and SASL to Kafka: every way of proving who we are, what is said when it fails, and secrets that change.

mod accepted;
mod broker;
mod refused;
mod rotated;
mod secrets;
mod tokens;

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig};
use crate::orders::{Orders, wait_for_status};
use broker::Secured;

const LONG: Duration = Duration::from_secs(3_600);

/// An outbox whose topic stands on the secured broker.
async fn orders(
    secured: &Secured,
    prefix: &str,
    secure: impl FnOnce(RelayConfig) -> RelayConfig,
) -> Orders {
    let postgres = Postgres::shared(USUAL).await;
    let mut orders = Orders::on(&secured.kafka, postgres, prefix).await;
    orders.config = secure(orders.config);
    orders.config.migrate();
    orders
}

/// Kafka is said to be away for this reason, and no row is held or condemned for it.
async fn wait_for_refusal(relay: &Relay, reason: &str) {
    let status = wait_for_status(relay, reason, |status| {
        let error = status["kafka"]["error"].as_str().unwrap_or_default();
        status["kafka"]["is_up"] == false && error.to_lowercase().contains(reason)
    })
    .await;
    assert_eq!(status["held"], Value::Array(Vec::new()), "{status}");
    assert_eq!(status["held_topics"], Value::Array(Vec::new()), "{status}");
}

/// Every row is in the topic, in order and once.
async fn assert_once_and_in_order(orders: &Orders, ids: &[Uuid]) {
    orders.wait_for(ids).await;
    assert_eq!(orders.published(), ids);
}
