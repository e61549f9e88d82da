-- Who may do what. Nothing goes to PUBLIC; the application needs INSERT, and the function if it uses it.

--: relay role
-- Roles belong to the whole server: another database may have created it, now or before.
DO $outboxd$ BEGIN
    CREATE ROLE {relay_role} NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $outboxd$;

--: relay
GRANT USAGE ON SCHEMA {schema} TO {relay_role};
GRANT SELECT ON {table} TO {relay_role};

--: relay sequence
-- The relay compares the sequence's last value with the rows before it trusts the numbers.
GRANT SELECT ON SEQUENCE {sequence} TO {relay_role};

--: relay sequence of a column
-- The same where nobody has looked which sequence it is.
DO $outboxd$
DECLARE
    sequence text := pg_catalog.pg_get_serial_sequence({table_literal}, {seq_name});
BEGIN
    IF sequence IS NOT NULL THEN
        EXECUTE pg_catalog.format('GRANT SELECT ON SEQUENCE %s TO %I', sequence, {relay_role_name});
    END IF;
END
$outboxd$;

--: relay sent_at
GRANT UPDATE ({sent_at}) ON {table} TO {relay_role};

--: relay delete
GRANT DELETE ON {table} TO {relay_role};

--: relay state
GRANT USAGE ON SCHEMA outboxd TO {relay_role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA outboxd TO {relay_role};

--: relay status
GRANT SELECT ON {status_view} TO {relay_role};

--: application
GRANT USAGE ON SCHEMA {schema} TO {application_role};
GRANT INSERT ON {table} TO {application_role};

--: application function
GRANT EXECUTE ON FUNCTION {publish_function}(
    text, text, text, json, jsonb, text, text, bigint, text, text, text, text, timestamptz, uuid
) TO {application_role};
