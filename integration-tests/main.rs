//! The integration tests: one binary, real PostgreSQL and real Kafka, one file per subject.
//!
//! `make servers` fetches the servers first. Tests run in parallel: each has a database and topics of its own,
//! and those that hurt a server start a private one.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod harness;

mod architecture;
mod bad_input;
mod catch_up;
mod clouds;
mod columns;
mod commands;
mod conformance;
mod cut_off;
mod failover;
mod faults;
mod first_start;
mod ha;
mod harness_self;
mod identity;
mod injected;
mod kafka_security;
mod lease;
mod ledger;
mod letters;
mod mark_change;
mod matrix;
mod migrate;
mod names;
mod neighbours;
mod numbers;
mod one_round;
mod orders;
mod peers;
mod ports;
mod prerequisites;
mod primary;
mod publisher;
mod readme;
mod refusals;
mod rename;
mod retention;
mod rights;
mod security;
mod shape_sample;
mod shapes;
mod signals;
mod strangers;
mod surroundings;
mod sweep;
mod topics;
mod truth;
mod values;
mod visible;
