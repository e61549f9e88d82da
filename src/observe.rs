//! What is seen of a relay from outside: the report, the metrics, HTTP and the log.

pub(crate) mod admin;
pub(crate) mod metrics;
pub(crate) mod status;
pub(crate) mod telemetry;
