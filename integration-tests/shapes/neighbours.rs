//! Who else uses the table, the database or the server; and Debezium's five columns.

use super::shape::{PLAIN, Payload, Shape, Twin};

const fn beside(name: &'static str, after: &'static str, once_migrated: &'static str) -> Shape {
    Shape {
        name,
        after,
        once_migrated,
        ..PLAIN
    }
}

const LONG: &str = "public.o23456789_123456789_123456789_123456789_123456789_123456789_a";
const LONG_TOO: &str = "public.o23456789_123456789_123456789_123456789_123456789_123456789_b";

pub const SHAPES: &[Shape] = &[
    beside(
        "FOR ALL TABLES before migrate",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "",
    ),
    beside(
        "FOR ALL TABLES after migrate",
        "",
        "CREATE PUBLICATION p FOR ALL TABLES",
    ),
    Shape {
        name: "FOR ALL TABLES while it runs",
        once_running: "CREATE PUBLICATION p FOR ALL TABLES",
        ..PLAIN
    },
    Shape {
        key: "",
        ..beside(
            "FOR ALL TABLES, no primary key",
            "",
            "CREATE PUBLICATION p FOR ALL TABLES",
        )
    },
    Shape {
        key: "",
        name: "FOR ALL TABLES while it runs, no primary key",
        once_running: "CREATE PUBLICATION p FOR ALL TABLES",
        ..PLAIN
    },
    beside(
        "FOR TABLES IN SCHEMA of ours",
        "",
        "CREATE PUBLICATION p FOR TABLES IN SCHEMA outboxd, public",
    ),
    beside(
        "Debezium's slot and publication on the same table",
        "CREATE PUBLICATION dbz_publication FOR TABLE {t}",
        "SELECT pg_create_logical_replication_slot('debezium_' || current_database(), 'pgoutput')",
    ),
    beside(
        "a publication of our name that lacks the table",
        "DO $$ BEGIN EXECUTE format('CREATE PUBLICATION %I', 'outboxd_' || current_database() || '_0'); END $$",
        "",
    ),
    beside(
        "a publication of our name for all tables",
        "DO $$ BEGIN EXECUTE format('CREATE PUBLICATION %I FOR ALL TABLES', 'outboxd_' || current_database() || '_0'); END $$",
        "",
    ),
    beside(
        "a publication of our name with a row filter",
        "DO $$ BEGIN EXECUTE format('CREATE PUBLICATION %I FOR TABLE {t} WHERE (aggregatetype = ''invoice'') \
         WITH (publish = ''insert'')', \
         'outboxd_' || current_database() || '_0'); END $$",
        "",
    ),
    beside(
        "a publication of our name with some columns",
        "DO $$ BEGIN EXECUTE format('CREATE PUBLICATION %I FOR TABLE {t} (id, aggregatetype, aggregateid, type, payload) \
         WITH (publish = ''insert'')', \
         'outboxd_' || current_database() || '_0'); END $$",
        "",
    ),
    beside(
        "a slot of our name with another plugin",
        "",
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database(); \
         SELECT pg_create_logical_replication_slot('outboxd_' || current_database() || '_0', 'test_decoding')",
    ),
    beside(
        "a physical slot of our name",
        "",
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database(); \
         SELECT pg_create_physical_replication_slot('outboxd_' || current_database() || '_0')",
    ),
    beside(
        "a subscription that feeds the table",
        "CREATE PUBLICATION feed FOR TABLE {t}",
        "DO $$ BEGIN EXECUTE format('CREATE SUBSCRIPTION feed CONNECTION ''host=127.0.0.1 user=postgres port=%s dbname=%s'' \
         PUBLICATION feed WITH (create_slot = false, slot_name = NONE, enabled = false, copy_data = false)', \
         current_setting('port'), current_database()); END $$",
    ),
    beside(
        "an event trigger that logs DDL",
        "CREATE TABLE ddl (at timestamptz, what text); CREATE FUNCTION e() RETURNS event_trigger LANGUAGE plpgsql AS \
         'BEGIN INSERT INTO ddl VALUES (now(), tg_tag); END'; CREATE EVENT TRIGGER et ON ddl_command_end EXECUTE FUNCTION e()",
        "",
    ),
    Shape {
        name: "two outboxes in two schemas",
        before: "CREATE SCHEMA IF NOT EXISTS orders; CREATE SCHEMA IF NOT EXISTS billing",
        table: "orders.outbox",
        twin: Twin::Table("billing.outbox"),
        ..PLAIN
    },
    Shape {
        name: "two outboxes in two databases",
        twin: Twin::Database,
        ..PLAIN
    },
    Shape {
        name: "two outboxes with long names that differ at their end",
        table: LONG,
        twin: Twin::Table(LONG_TOO),
        ..PLAIN
    },
    Shape {
        name: "two outboxes whose names differ in what is cleaned",
        table: "public.\"out-box\"",
        twin: Twin::Table("public.\"out.box\""),
        ..PLAIN
    },
    Shape {
        name: "two outboxes in two databases with FOR ALL TABLES",
        twin: Twin::Database,
        once_migrated: "CREATE PUBLICATION p FOR ALL TABLES",
        ..PLAIN
    },
];

const FIVE: Shape = Shape {
    seq: "",
    created_at: "",
    sent_at: "",
    payload: Payload::Of("jsonb"),
    ..PLAIN
};

pub const DEBEZIUM: &[Shape] = &[
    Shape {
        name: "Debezium's five columns",
        ..FIVE
    },
    Shape {
        name: "Debezium's five columns, ordered by id",
        settings: &[("source.order_column", "\"id\"")],
        id: super::shape::Id {
            kind: "bigint",
            of: "n",
        },
        ..FIVE
    },
    Shape {
        name: "Debezium's five columns and sent_at",
        sent_at: "timestamptz",
        ..FIVE
    },
    Shape {
        name: "Debezium's five columns and created_at",
        created_at: "timestamptz NOT NULL DEFAULT clock_timestamp()",
        settings: &[("source.order_column", "\"created_at\"")],
        ..FIVE
    },
];
