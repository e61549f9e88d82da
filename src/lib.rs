//! outboxd relays committed outbox rows from PostgreSQL to Kafka.
//!
//! A row goes through `source`, `encode`, `core`, `publish` and `mark`, in this order; `ARCHITECTURE.md` walks one through.
#![deny(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod config;
pub mod core;
pub mod encode;
pub mod kafka;
pub mod mark;
pub mod observe;
pub mod postgres;
pub mod publish;
pub mod relay;
pub mod row;
#[cfg(test)]
mod simulator;
pub mod source;
pub mod state;
pub mod text;
