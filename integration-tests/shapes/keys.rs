//! Keys, constraints, triggers, rules, row security, and tables that are not logged.

use super::shape::{Id, PLAIN, Shape};

const fn trigger(name: &'static str, after: &'static str) -> Shape {
    Shape {
        name,
        after,
        ..PLAIN
    }
}

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "no primary key",
        key: "",
        ..PLAIN
    },
    Shape {
        name: "no key at all",
        key: "",
        seq: "",
        settings: &[("source.order_column", "\"created_at\"")],
        ..PLAIN
    },
    Shape {
        name: "ids that repeat in two tenants",
        front: "tenant int NOT NULL,",
        id: Id {
            kind: "bigint",
            of: "n / 2",
        },
        given: &[("tenant", "(n % 2)::int")],
        key: "PRIMARY KEY (tenant, id)",
        ..PLAIN
    },
    Shape {
        name: "ids that repeat in two tenants, no numbers",
        front: "tenant int NOT NULL,",
        id: Id {
            kind: "bigint",
            of: "n / 2",
        },
        given: &[("tenant", "(n % 2)::int")],
        key: "PRIMARY KEY (tenant, id)",
        seq: "",
        settings: &[("source.order_column", "\"created_at\"")],
        ..PLAIN
    },
    Shape {
        name: "a primary key of two columns, ids that do not repeat",
        front: "tenant int NOT NULL DEFAULT 1,",
        key: "PRIMARY KEY (tenant, id)",
        ..PLAIN
    },
    Shape {
        name: "a foreign key to orders",
        before: "CREATE TABLE orders (id text PRIMARY KEY); INSERT INTO orders SELECT 'a-' || n FROM generate_series(0, 6) n",
        back: ", FOREIGN KEY (aggregateid) REFERENCES orders (id)",
        ..PLAIN
    },
    Shape {
        name: "a foreign key to the outbox, of no row",
        after: "CREATE TABLE audit (event uuid REFERENCES {t} (id))",
        ..PLAIN
    },
    Shape {
        name: "a foreign key to the outbox, of one row",
        after: "CREATE TABLE audit (event uuid REFERENCES {t} (id)); \
                CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
                'BEGIN IF NEW.seq BETWEEN 104 AND 106 THEN INSERT INTO audit VALUES (NEW.id); END IF; RETURN NULL; END'; \
                CREATE TRIGGER t AFTER INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION f()",
        ..PLAIN
    },
    Shape {
        name: "a foreign key to the outbox that cascades",
        after: "CREATE TABLE audit (event uuid REFERENCES {t} (id) ON DELETE CASCADE)",
        ..PLAIN
    },
    trigger(
        "a trigger before INSERT",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.type := upper(NEW.type); RETURN NEW; END'; \
         CREATE TRIGGER t BEFORE INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger after INSERT that notifies",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_notify(''outbox'', NEW.id::text); RETURN NULL; END'; \
         CREATE TRIGGER t AFTER INSERT ON {t} FOR EACH ROW WHEN (NEW.seq < 105) EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger after INSERT that updates the row",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN UPDATE {t} SET type = ''Changed again'' WHERE id = NEW.id; RETURN NULL; END'; \
         CREATE TRIGGER t AFTER INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger before UPDATE that keeps the old row",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER t BEFORE UPDATE OF sent_at ON {t} FOR EACH ROW EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger before UPDATE that raises",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'; \
         CREATE TRIGGER t BEFORE UPDATE OF sent_at ON {t} FOR EACH ROW EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger before DELETE that keeps the row",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF current_setting(''application_name'') LIKE ''outboxd%'' THEN RETURN NULL; END IF; RETURN OLD; END'; \
         CREATE TRIGGER t BEFORE DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger before DELETE that raises",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF current_setting(''application_name'') LIKE ''outboxd%'' THEN RAISE ''no''; END IF; RETURN OLD; END'; \
         CREATE TRIGGER t BEFORE DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger after DELETE that raises at COMMIT",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF current_setting(''application_name'') LIKE ''outboxd%'' THEN RAISE ''no''; END IF; RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER t AFTER DELETE ON {t} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger for each statement",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH STATEMENT EXECUTE FUNCTION f()",
    ),
    trigger(
        "a trigger that is disabled",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'; \
         CREATE TRIGGER t BEFORE UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE {t} DISABLE TRIGGER t",
    ),
    trigger(
        "a rule instead of DELETE",
        "CREATE RULE r AS ON DELETE TO {t} WHERE current_setting('application_name') LIKE 'outboxd%' DO INSTEAD NOTHING",
    ),
    trigger(
        "a rule instead of UPDATE",
        "CREATE RULE r AS ON UPDATE TO {t} WHERE current_setting('application_name') LIKE 'outboxd%' DO INSTEAD NOTHING",
    ),
    trigger("row security", "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY"),
    trigger(
        "row security with force",
        "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; ALTER TABLE {t} FORCE ROW LEVEL SECURITY",
    ),
    trigger(
        "a check on sent_at",
        "ALTER TABLE {t} ADD CHECK (sent_at IS NULL)",
    ),
    trigger(
        "replica identity full",
        "ALTER TABLE {t} REPLICA IDENTITY FULL",
    ),
    trigger(
        "replica identity nothing",
        "ALTER TABLE {t} REPLICA IDENTITY NOTHING",
    ),
    Shape {
        name: "a deferrable primary key",
        key: "PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED",
        ..PLAIN
    },
    Shape {
        name: "not logged",
        tail: "UNLOGGED",
        ..PLAIN
    },
    Shape {
        name: "an exclusion constraint",
        back: ", EXCLUDE USING hash (id WITH =)",
        ..PLAIN
    },
];
