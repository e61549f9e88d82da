//! Types of `created_at` and `sent_at`.

use super::shape::{PLAIN, Shape};

const RETAINED: &[(&str, &str)] = &[("source.retention", "\"2s\"")];

const fn created(name: &'static str, created_at: &'static str) -> Shape {
    Shape {
        name,
        created_at,
        ..PLAIN
    }
}

const fn retained(name: &'static str, created_at: &'static str) -> Shape {
    Shape {
        settings: RETAINED,
        ..created(name, created_at)
    }
}

pub const SHAPES: &[Shape] = &[
    created("no created_at", ""),
    created("created_at timestamp", "timestamp NOT NULL DEFAULT now()"),
    created("created_at that is NULL", "timestamptz"),
    created("created_at date", "date NOT NULL DEFAULT now()"),
    created(
        "created_at bigint",
        "bigint NOT NULL DEFAULT extract(epoch FROM now()) * 1000",
    ),
    created("created_at text", "text NOT NULL DEFAULT now()::text"),
    created("created_at time", "time NOT NULL DEFAULT now()"),
    created("created_at interval", "interval NOT NULL DEFAULT '1 day'"),
    created(
        "created_at double precision",
        "double precision NOT NULL DEFAULT extract(epoch FROM now())",
    ),
    created(
        "created_at infinity",
        "timestamptz NOT NULL DEFAULT 'infinity'",
    ),
    created(
        "created_at -infinity",
        "timestamptz NOT NULL DEFAULT '-infinity'",
    ),
    created(
        "created_at in the future",
        "timestamptz NOT NULL DEFAULT now() + interval '10 years'",
    ),
    created("created_at jsonb", "jsonb NOT NULL DEFAULT to_jsonb(now())"),
    retained("no created_at, rows kept for 2 s", ""),
    retained(
        "created_at timestamp, rows kept for 2 s",
        "timestamp NOT NULL DEFAULT now()",
    ),
    retained("created_at that is NULL, rows kept for 2 s", "timestamptz"),
    retained(
        "created_at date, rows kept for 2 s",
        "date NOT NULL DEFAULT now()",
    ),
    retained(
        "created_at bigint, rows kept for 2 s",
        "bigint NOT NULL DEFAULT 0",
    ),
    retained(
        "created_at -infinity, rows kept for 2 s",
        "timestamptz NOT NULL DEFAULT '-infinity'",
    ),
    Shape {
        name: "no sent_at",
        sent_at: "",
        ..PLAIN
    },
    Shape {
        name: "sent_at timestamp",
        sent_at: "timestamp",
        ..PLAIN
    },
    Shape {
        name: "sent_at boolean",
        sent_at: "boolean",
        ..PLAIN
    },
    Shape {
        name: "sent_at with a default",
        sent_at: "timestamptz DEFAULT now()",
        ..PLAIN
    },
    Shape {
        name: "sent_at not null",
        sent_at: "timestamptz NOT NULL DEFAULT '-infinity'",
        ..PLAIN
    },
    Shape {
        name: "sent_at generated",
        sent_at: "timestamptz GENERATED ALWAYS AS (NULL) STORED",
        ..PLAIN
    },
];
