//! What is seen of a relay from outside: the report, the metrics, HTTP and the log.

pub mod admin;
pub mod metrics;
pub mod status;
pub mod telemetry;
