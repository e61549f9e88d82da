//! What is seen of a relay from outside: the report, the metrics, HTTP, logs, and the commands that are printed.

pub mod admin;
pub mod metrics;
pub(crate) mod paste;
pub mod status;
pub mod telemetry;
