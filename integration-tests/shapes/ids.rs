//! Types of `id`, and of the columns that name the aggregate.

use super::shape::{Id, PLAIN, Shape};

const fn id(name: &'static str, kind: &'static str, of: &'static str) -> Shape {
    Shape {
        name,
        id: Id { kind, of },
        ..PLAIN
    }
}

pub const SHAPES: &[Shape] = &[
    id("id text", "text", "'event ' || n"),
    id("id varchar(64)", "varchar(64)", "'event ' || n"),
    id("id char(36)", "char(36)", "md5('id' || n)::uuid::text"),
    id("id char(32), shorter values", "char(32)", "'event ' || n"),
    id("id bpchar", "bpchar", "'event ' || n"),
    id(
        "id varchar with blanks at the end",
        "varchar(64)",
        "'event ' || n || '  '",
    ),
    id("id bigint", "bigint", "n * 1000000007"),
    id("id integer", "integer", "n"),
    id("id smallint", "smallint", "n"),
    id("id negative", "bigint", "-n"),
    id("id numeric", "numeric", "n * 1.50"),
    id("id numeric(30,4)", "numeric(30,4)", "n"),
    id("id double precision", "double precision", "n / 3.0"),
    id("id real", "real", "n / 3.0"),
    id("id inet", "inet", "'10.0.0.0'::inet + n"),
    id("id cidr", "cidr", "('10.0.0.0'::inet + n)::cidr"),
    id(
        "id macaddr",
        "macaddr",
        "('08:00:2b:01:' || lpad(to_hex(n / 256), 2, '0') || ':' || lpad(to_hex(n % 256), 2, '0'))::macaddr",
    ),
    id("id date", "date", "date '2000-01-01' + n::int"),
    id(
        "id timestamptz",
        "timestamptz",
        "timestamptz '2000-01-01' + n * interval '1 second'",
    ),
    id("id interval", "interval", "n * interval '1 second'"),
    id("id money", "money", "n::money"),
    id(
        "id bytea",
        "bytea",
        "decode(lpad(to_hex(n), 8, '0'), 'hex')",
    ),
    id("id name", "name", "'event_' || n"),
    id("id bit varying", "bit varying", "n::int::bit(32)"),
    id("id array", "int[]", "ARRAY[n, n + 1]::int[]"),
    id("id jsonb", "jsonb", "to_jsonb(n)"),
    Shape {
        before: "CREATE DOMAIN event_id AS text CHECK (VALUE <> '')",
        ..id("id domain of text", "event_id", "'event ' || n")
    },
    Shape {
        before: "CREATE DOMAIN event_id AS char(32)",
        ..id("id domain of char(32)", "event_id", "'event ' || n")
    },
    Shape {
        before: "CREATE DOMAIN inner_id AS bigint; CREATE DOMAIN event_id AS inner_id CHECK (VALUE > 0)",
        ..id("id domain of a domain", "event_id", "n")
    },
    Shape {
        before: "DO $$ BEGIN EXECUTE (SELECT 'CREATE TYPE event_id AS ENUM (' || string_agg(quote_literal('e' || n), ',') || ')' \
                 FROM generate_series(1, 2000) n); END $$",
        ..id("id enum", "event_id", "('e' || n)::event_id")
    },
    Shape {
        before: "CREATE EXTENSION citext",
        ..id("id citext", "citext", "'Event ' || n")
    },
    Shape {
        before: "CREATE TYPE event_id AS (a bigint, b text)",
        ..id("id composite", "event_id", "ROW(n, 'x')::event_id")
    },
    Shape {
        name: "aggregatetype char(10)",
        aggregate_type: "char(10) NOT NULL",
        ..PLAIN
    },
    Shape {
        name: "aggregateid char(10)",
        aggregate_id: "char(10) NOT NULL",
        ..PLAIN
    },
    Shape {
        name: "aggregateid citext",
        before: "CREATE EXTENSION citext",
        aggregate_id: "citext NOT NULL",
        ..PLAIN
    },
    Shape {
        name: "aggregatetype enum",
        before: "CREATE TYPE kind AS ENUM ('order', 'invoice')",
        aggregate_type: "kind NOT NULL",
        ..PLAIN
    },
    Shape {
        name: "aggregateid domain",
        before: "CREATE DOMAIN aggregate_id AS varchar(40) NOT NULL",
        aggregate_id: "aggregate_id",
        ..PLAIN
    },
];
