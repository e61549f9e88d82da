//! Columns beside and instead of the five, types of the payload, and names.

use super::shape::{Id, PLAIN, Payload, Shape};

const fn payload(name: &'static str, kind: &'static str) -> Shape {
    Shape {
        name,
        payload: Payload::Of(kind),
        ..PLAIN
    }
}

pub const SHAPES: &[Shape] = &[
    payload("payload jsonb", "jsonb"),
    payload("payload text", "text"),
    payload("payload varchar", "varchar(500)"),
    payload("payload bytea", "bytea"),
    Shape {
        name: "payload xml",
        payload: Payload::By("xml", "('<e>' || text || '</e>')::xml"),
        ..PLAIN
    },
    Shape {
        name: "payload composite",
        before: "CREATE TYPE body AS (text text)",
        payload: Payload::By("body", "ROW(text)::body"),
        ..PLAIN
    },
    Shape {
        name: "payload array",
        payload: Payload::By("text[]", "ARRAY[text]"),
        ..PLAIN
    },
    Shape {
        name: "payload domain of jsonb",
        before: "CREATE DOMAIN body AS jsonb CHECK (VALUE IS NOT NULL)",
        payload: Payload::Of("body"),
        ..PLAIN
    },
    Shape {
        name: "payload domain of text",
        before: "CREATE DOMAIN body AS text",
        payload: Payload::Of("body"),
        ..PLAIN
    },
    Shape {
        name: "payload citext",
        before: "CREATE EXTENSION citext",
        payload: Payload::Of("citext"),
        ..PLAIN
    },
    Shape {
        name: "partitionkey generated",
        back: ", partitionkey text GENERATED ALWAYS AS (aggregateid || '!') STORED",
        key_suffix: "!",
        ..PLAIN
    },
    Shape {
        name: "partitionkey by default",
        back: ", partitionkey text",
        given: &[("partitionkey", "'a-' || n % 7 || '!'")],
        key_suffix: "!",
        ..PLAIN
    },
    Shape {
        name: "a header generated",
        back: ", traceparent text GENERATED ALWAYS AS ('00-' || id_text(id)) STORED",
        before: "CREATE FUNCTION id_text(uuid) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1::text'",
        ..PLAIN
    },
    Shape {
        name: "a column that nobody reads generated",
        back: ", length int GENERATED ALWAYS AS (length(type)) STORED",
        ..PLAIN
    },
    Shape {
        name: "a column that nobody reads virtual",
        major: 18,
        back: ", length int GENERATED ALWAYS AS (length(type)) VIRTUAL",
        ..PLAIN
    },
    Shape {
        name: "partitionkey virtual",
        major: 18,
        back: ", partitionkey text GENERATED ALWAYS AS (aggregateid || '!') VIRTUAL",
        key_suffix: "!",
        ..PLAIN
    },
    Shape {
        name: "columns of many types",
        before: "CREATE TYPE pair AS (a int, b text); CREATE DOMAIN small AS int CHECK (VALUE < 10)",
        back: ", tags text[] DEFAULT '{a,\"b c\"}', inside pair DEFAULT ROW(1, 'x'), few small DEFAULT 3, document xml DEFAULT '<a/>', \
               range int4range DEFAULT '[1,5)', place point DEFAULT '(1,2)', words tsvector DEFAULT 'a b', cost money DEFAULT 3, \
               raw bytea DEFAULT '\\x00ff', bits bit(3) DEFAULT '101', network inet DEFAULT '10.0.0.1'",
        ..PLAIN
    },
    Shape {
        name: "columns dropped before and between",
        front: "gone_1 int, gone_2 text,",
        middle: "gone_3 text,",
        back: ", gone_4 text",
        after: "ALTER TABLE {t} DROP COLUMN gone_1, DROP COLUMN gone_2, DROP COLUMN gone_3, DROP COLUMN gone_4",
        ..PLAIN
    },
    Shape {
        name: "columns in another order",
        front: "aggregateversion bigint,",
        middle: "note text,",
        ..PLAIN
    },
    Shape {
        name: "400 columns",
        after: "DO $$ BEGIN EXECUTE (SELECT 'ALTER TABLE {t} ' || string_agg('ADD COLUMN c' || i || ' text', ', ') \
                FROM generate_series(1, 400) i); END $$",
        ..PLAIN
    },
    Shape {
        name: "columns added and dropped while it runs",
        once_running: "ALTER TABLE {t} ADD COLUMN note text DEFAULT 'x'; ALTER TABLE {t} DROP COLUMN note",
        ..PLAIN
    },
    Shape {
        name: "a column added while it runs",
        once_running: "ALTER TABLE {t} ADD COLUMN traceparent text",
        ..PLAIN
    },
    Shape {
        name: "quoted and Unicode names of columns",
        back: ", \"Größe in €\" int DEFAULT 3, \"select\" text, \"a\"\"b\" text, \"дата\" text DEFAULT 'x'",
        ..PLAIN
    },
    Shape {
        name: "columns of other names",
        renamed: &[
            ("id", "event_id"),
            ("aggregatetype", "aggregate_type"),
            ("aggregateid", "aggregate_id"),
            ("type", "event_type"),
            ("payload", "body"),
            ("seq", "row_number"),
            ("created_at", "occurred_at"),
            ("sent_at", "published_at"),
            ("partitionkey", "shard"),
        ],
        key: "PRIMARY KEY (event_id)",
        back: ", shard text",
        given: &[("shard", "'a-' || n % 7 || '!'")],
        key_suffix: "!",
        ..PLAIN
    },
    Shape {
        name: "columns of other names, quoted and Unicode",
        renamed: &[
            ("id", "Ereignis-Id"),
            ("aggregatetype", "Art \"groß\""),
            ("aggregateid", "агрегат"),
            ("type", "select"),
            ("payload", "Inhalt {n}?"),
            ("seq", "Nr."),
            ("created_at", "angelegt am"),
            ("sent_at", "it's gone"),
        ],
        key: "PRIMARY KEY (\"Ereignis-Id\")",
        payload: Payload::Of("jsonb"),
        ..PLAIN
    },
    Shape {
        name: "columns of ours that mean something else",
        renamed: &[
            ("id", "message_id"),
            ("seq", "id"),
            ("aggregatetype", "topic"),
            ("type", "name"),
            ("sent_at", "sent"),
        ],
        key: "PRIMARY KEY (message_id)",
        back: ", type int DEFAULT 3, seq text DEFAULT 'x', sent_at bigint DEFAULT 7",
        ..PLAIN
    },
    Shape {
        name: "a column with a name of 63 bytes",
        back: ", a23456789_123456789_123456789_123456789_123456789_123456789_123 text",
        ..PLAIN
    },
    Shape {
        name: "a quoted and Unicode name of the table",
        before: "CREATE SCHEMA \"Meine Ablage\"",
        table: "\"Meine Ablage\".\"Aus\"\"gang ü\"",
        ..PLAIN
    },
    Shape {
        name: "a table with a name of 63 bytes",
        table: "public.o23456789_123456789_123456789_123456789_123456789_123456789_123",
        ..PLAIN
    },
    Shape {
        name: "schema and table with names of 63 bytes",
        before: "CREATE SCHEMA s23456789_123456789_123456789_123456789_123456789_123456789_123",
        table: "s23456789_123456789_123456789_123456789_123456789_123456789_123.\
                o23456789_123456789_123456789_123456789_123456789_123456789_123",
        ..PLAIN
    },
    Shape {
        name: "a table called select",
        table: "public.\"select\"",
        ..PLAIN
    },
    Shape {
        name: "names in upper case",
        table: "public.\"OUTBOX\"",
        ..PLAIN
    },
    Shape {
        name: "columns called as the relay's own aliases",
        back: ", o int, size int, c0 text, row text, sent boolean, n2 int",
        ..PLAIN
    },
    Shape {
        name: "large values beside small ones",
        back: ", attachment text DEFAULT repeat('x', 200000)",
        id: Id {
            kind: "bigint",
            of: "n",
        },
        ..PLAIN
    },
    Shape {
        name: "version 14",
        major: 14,
        ..PLAIN
    },
    Shape {
        name: "version 16",
        major: 16,
        ..PLAIN
    },
    Shape {
        name: "version 17",
        major: 17,
        ..PLAIN
    },
    Shape {
        name: "version 18",
        major: 18,
        ..PLAIN
    },
];
