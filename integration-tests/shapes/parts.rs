//! Tables of several parts.

use super::shape::{PLAIN, Shape};

const BY_TIME: Shape = Shape {
    key: "PRIMARY KEY (id, created_at), UNIQUE (seq, created_at)",
    seq: "bigint GENERATED ALWAYS AS IDENTITY",
    ..PLAIN
};

const BY_NUMBER: Shape = Shape {
    key: "PRIMARY KEY (seq)",
    seq: "bigint GENERATED ALWAYS AS IDENTITY",
    ..PLAIN
};

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "parts by range of time",
        tail: "PARTITION BY RANGE (created_at)",
        after: "CREATE TABLE part_old PARTITION OF {t} FOR VALUES FROM (MINVALUE) TO ('2025-01-01'); \
                CREATE TABLE part_new PARTITION OF {t} FOR VALUES FROM ('2025-01-01') TO (MAXVALUE)",
        ..BY_TIME
    },
    Shape {
        name: "parts by range of numbers, one added while it runs",
        tail: "PARTITION BY RANGE (seq)",
        after: "CREATE TABLE part_1 PARTITION OF {t} FOR VALUES FROM (0) TO (130)",
        once_running: "CREATE TABLE part_2 PARTITION OF {t} FOR VALUES FROM (130) TO (1000)",
        ..BY_NUMBER
    },
    Shape {
        name: "parts by list",
        tail: "PARTITION BY LIST (aggregatetype)",
        key: "PRIMARY KEY (seq, aggregatetype)",
        after: "CREATE TABLE part_order PARTITION OF {t} FOR VALUES IN ('order'); \
                CREATE TABLE part_invoice PARTITION OF {t} FOR VALUES IN ('invoice')",
        ..BY_NUMBER
    },
    Shape {
        name: "parts by hash",
        tail: "PARTITION BY HASH (id)",
        key: "PRIMARY KEY (id)",
        back: ", UNIQUE (seq, id)",
        after: "CREATE TABLE part_0 PARTITION OF {t} FOR VALUES WITH (MODULUS 3, REMAINDER 0); \
                CREATE TABLE part_1 PARTITION OF {t} FOR VALUES WITH (MODULUS 3, REMAINDER 1); \
                CREATE TABLE part_2 PARTITION OF {t} FOR VALUES WITH (MODULUS 3, REMAINDER 2)",
        ..BY_NUMBER
    },
    Shape {
        name: "parts by range, a default one",
        tail: "PARTITION BY RANGE (seq)",
        after: "CREATE TABLE part_1 PARTITION OF {t} FOR VALUES FROM (0) TO (50); \
                CREATE TABLE part_default PARTITION OF {t} DEFAULT",
        ..BY_NUMBER
    },
    Shape {
        name: "parts of two levels",
        tail: "PARTITION BY LIST (aggregatetype)",
        key: "PRIMARY KEY (seq, aggregatetype)",
        after: "CREATE TABLE part_order PARTITION OF {t} FOR VALUES IN ('order') PARTITION BY RANGE (seq); \
                CREATE TABLE part_order_1 PARTITION OF part_order FOR VALUES FROM (0) TO (60); \
                CREATE TABLE part_order_2 PARTITION OF part_order DEFAULT; \
                CREATE TABLE part_rest PARTITION OF {t} DEFAULT",
        ..BY_NUMBER
    },
    Shape {
        name: "parts whose columns stand in another order",
        tail: "PARTITION BY RANGE (seq)",
        key: "",
        after: "CREATE TABLE part_1 (payload json, gone int, seq bigint NOT NULL, aggregateid varchar(255) NOT NULL, \
                created_at timestamptz NOT NULL DEFAULT clock_timestamp(), type varchar(255) NOT NULL, id uuid NOT NULL, \
                sent_at timestamptz, aggregatetype varchar(255) NOT NULL); \
                ALTER TABLE part_1 DROP COLUMN gone; ALTER TABLE {t} ATTACH PARTITION part_1 DEFAULT; \
                ALTER TABLE {t} ADD PRIMARY KEY (seq)",
        ..BY_NUMBER
    },
    Shape {
        name: "a child by INHERITS",
        after: "CREATE TABLE child () INHERITS ({t}); \
                ALTER TABLE child ALTER COLUMN seq SET DEFAULT nextval(pg_get_serial_sequence('{t}', 'seq'))",
        targets: &["{t}", "child"],
        ..PLAIN
    },
    Shape {
        name: "a child by INHERITS that stays empty",
        after: "CREATE TABLE child () INHERITS ({t})",
        ..PLAIN
    },
    Shape {
        name: "itself a child by INHERITS",
        before: "CREATE TABLE base (note text)",
        tail: "INHERITS (base)",
        ..PLAIN
    },
    Shape {
        name: "itself a partition of another table",
        before: "CREATE TABLE events (id uuid NOT NULL, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, \
                 type varchar(255) NOT NULL, payload json, seq bigint, created_at timestamptz NOT NULL DEFAULT clock_timestamp(), \
                 sent_at timestamptz) PARTITION BY LIST (aggregatetype)",
        seq: "bigint",
        settings: &[("source.order_column", "\"created_at\"")],
        after: "ALTER TABLE events ATTACH PARTITION {t} DEFAULT",
        ..PLAIN
    },
];
