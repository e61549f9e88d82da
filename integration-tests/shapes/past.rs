//! First starts: how many rows stand there, and whether they are published.

use super::shape::{Made, PLAIN, Past, Shape};

const MADE: Shape = Shape {
    made: Made::ByMigrate(&[]),
    past: Past::All(100),
    ..PLAIN
};

/// No numbers: rows are told apart by their ids, and ordered by their time.
const UNNUMBERED: Shape = Shape {
    seq: "",
    settings: &[("source.order_column", "\"created_at\"")],
    ..PLAIN
};

const RETAINED: &[(&str, &str)] = &[("source.retention", "\"2s\"")];

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "plain, all of 100 rows",
        past: Past::All(100),
        ..PLAIN
    },
    Shape {
        name: "plain, now after 100 rows",
        past: Past::Now(100),
        ..PLAIN
    },
    Shape {
        name: "plain, all of 100,000 rows",
        past: Past::All(100_000),
        ..PLAIN
    },
    Shape {
        name: "plain, now after 100,000 rows",
        past: Past::Now(100_000),
        ..PLAIN
    },
    Shape {
        name: "unnumbered, all of 100,000 rows",
        past: Past::All(100_000),
        ..UNNUMBERED
    },
    Shape {
        name: "unnumbered, now after 100,000 rows",
        past: Past::Now(100_000),
        ..UNNUMBERED
    },
    Shape {
        name: "made by migrate",
        ..MADE
    },
    Shape {
        name: "made by migrate, partitioned",
        made: Made::ByMigrate(&["--partitioned", "--partition-rows", "100"]),
        ..MADE
    },
    Shape {
        name: "made by migrate, rows kept for 2 s",
        settings: RETAINED,
        ..MADE
    },
    Shape {
        name: "made by migrate, partitioned, rows kept for 2 s",
        made: Made::ByMigrate(&["--partitioned", "--partition-rows", "100"]),
        settings: RETAINED,
        ..MADE
    },
    Shape {
        name: "plain, rows kept for 2 s",
        settings: RETAINED,
        ..PLAIN
    },
    Shape {
        name: "read from the table",
        settings: &[("source.replication.catch_up", "\"table\"")],
        ..PLAIN
    },
];
