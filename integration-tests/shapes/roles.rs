//! As whom the relay connects, and with which settings.

use super::shape::{PLAIN, Role, Shape};

const fn least(name: &'static str, settings: &'static [&'static str]) -> Shape {
    Shape {
        name,
        role: Role::Least(settings),
        ..PLAIN
    }
}

pub const SHAPES: &[Shape] = &[
    least("least rights", &[]),
    Shape {
        name: "least rights, parts",
        tail: "PARTITION BY RANGE (seq)",
        key: "PRIMARY KEY (seq)",
        seq: "bigint GENERATED ALWAYS AS IDENTITY",
        after: "CREATE TABLE part_1 PARTITION OF {t} FOR VALUES FROM (0) TO (60); CREATE TABLE part_2 PARTITION OF {t} DEFAULT",
        ..least("", &[])
    },
    Shape {
        name: "least rights, rows kept for 2 s",
        settings: &[("source.retention", "\"2s\"")],
        ..least("", &[])
    },
    Shape {
        name: "least rights, row security",
        after: "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY",
        ..least("", &[])
    },
    Shape {
        name: "least rights, a schema of its own",
        before: "CREATE SCHEMA shop",
        table: "shop.outbox",
        ..least("", &[])
    },
    least("without REPLICATION", &["NOREPLICATION"]),
    Shape {
        name: "owner without CREATEROLE",
        role: Role::Owner(&[]),
        ..PLAIN
    },
    Shape {
        name: "owner without REPLICATION",
        role: Role::Owner(&["NOREPLICATION"]),
        ..PLAIN
    },
    least(
        "role: serializable",
        &["SET default_transaction_isolation = 'serializable'"],
    ),
    least(
        "role: repeatable read",
        &["SET default_transaction_isolation = 'repeatable read'"],
    ),
    least(
        "role: read only",
        &["SET default_transaction_read_only = on"],
    ),
    least("role: no search_path", &["SET search_path = ''"]),
    least(
        "role: search_path elsewhere",
        &["SET search_path = nowhere, pg_temp"],
    ),
    least(
        "role: synchronous_commit off",
        &["SET synchronous_commit = off"],
    ),
    least(
        "role: synchronous_commit remote_apply",
        &["SET synchronous_commit = remote_apply"],
    ),
    least("role: statement_timeout", &["SET statement_timeout = '2s'"]),
    least("role: lock_timeout", &["SET lock_timeout = '100ms'"]),
    least(
        "role: idle_session_timeout",
        &["SET idle_session_timeout = '3s'"],
    ),
    least(
        "role: idle_in_transaction_session_timeout",
        &["SET idle_in_transaction_session_timeout = '1s'"],
    ),
    least(
        "role: wal_sender_timeout",
        &["SET wal_sender_timeout = '2s'"],
    ),
    least(
        "role: output of times and bytes",
        &[
            "SET datestyle = 'SQL, DMY'",
            "SET bytea_output = 'escape'",
            "SET timezone = 'Asia/Tokyo'",
        ],
    ),
    least(
        "role: client_encoding",
        &["SET client_encoding = 'SQL_ASCII'"],
    ),
    least("role: row_security off", &["SET row_security = off"]),
    least(
        "role: quote_all_identifiers",
        &["SET quote_all_identifiers = on"],
    ),
    least(
        "role: plans without indexes",
        &["SET enable_indexscan = off", "SET enable_bitmapscan = off"],
    ),
    least("role: few connections", &["CONNECTION LIMIT 3"]),
    least("role: expired", &["VALID UNTIL '2001-01-01'"]),
];
