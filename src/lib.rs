//! outboxd relays committed outbox rows from PostgreSQL to Kafka.
//!
//! The modules stand in the order in which a row meets them; `ARCHITECTURE.md` walks one row through.
#![deny(unsafe_code)]

pub mod admin;
pub mod blocked;
pub mod check;
pub mod cli;
pub mod columns;
pub mod config;
pub mod core;
pub mod dead_letter;
pub mod demo;
pub mod encode;
pub mod hold;
pub mod identity;
pub mod inspect;
pub mod kafka;
pub mod lease;
pub mod mark;
pub mod mark_change;
pub mod metrics;
pub mod migrate;
pub mod names;
pub mod outbox;
mod paste;
pub mod postgres;
pub mod publication;
pub mod publish;
pub mod ranges;
pub mod relay;
pub mod rename;
pub mod retention;
pub mod session;
#[cfg(test)]
mod simulator;
pub mod slot;
pub mod source;
pub mod state;
pub mod status;
pub mod supervise;
pub mod telemetry;
pub mod unsent;
pub mod wal_watch;
