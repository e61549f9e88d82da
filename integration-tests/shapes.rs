//! The table of shapes: tables, databases, settings and neighbours as people have them, through one scenario in every
//! mode with every mark.
//!
//! What is expected of a shape is written nowhere. `outboxd check` decides: what it refuses, with a remedy, `run`
//! refuses with the same reason; what it lets pass must hold under the oracle. `make test` runs a sample that changes
//! from day to day (`shape_sample.rs`), `make shapes` all of it (`program`).
#![allow(dead_code, reason = "each program uses a part of the table")]

pub mod case;
mod check;
mod columns;
mod databases;
pub mod events;
mod ids;
pub mod judge;
mod keys;
mod neighbours;
mod numbers;
mod parts;
mod past;
pub mod program;
mod results;
mod roles;
mod scenario;
pub mod server;
pub mod shape;
mod times;

use shape::Shape;

/// Every shape, family by family.
fn all() -> Vec<Shape> {
    let families: [&[Shape]; 11] = [
        past::SHAPES,
        ids::SHAPES,
        numbers::SHAPES,
        parts::SHAPES,
        columns::SHAPES,
        times::SHAPES,
        keys::SHAPES,
        databases::SHAPES,
        neighbours::SHAPES,
        roles::SHAPES,
        neighbours::DEBEZIUM,
    ];
    families.concat()
}
