//! A first start in one round: `check` names everything that is missing, and its script mends all of it; `migrate` asks
//! before its first step for what would stop it half-way.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::postgres::{Postgres, Stop, USUAL};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::orders::Orders;

const FIVE_COLUMNS: &str = "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \
    aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)";

/// A database of its own, and a role that may log in and nothing else.
async fn bare(postgres: &Postgres) -> (Orders, RelayConfig) {
    let orders = Orders::bare(postgres, "one_round").await;
    let role = format!("{} \"Relay\"", orders.database.name);
    orders
        .run(&format!(
            "CREATE ROLE \"{}\" LOGIN",
            role.replace('"', "\"\"")
        ))
        .await;
    let url = orders.database.url.clone();
    let word = role.replace(' ', "%20").replace('"', "%22");
    let url = url.replace("//postgres@", &format!("//{word}@"));
    let config = orders.config.clone().set("source.url", url);
    (orders, config)
}

/// What is missing: `what: detail`.
fn missing(config: &RelayConfig) -> Vec<String> {
    let checked = config.outboxd(&["check", "--json"]);
    let report: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("findings").iter();
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    findings
        .filter(|one| one["outcome"] == "missing")
        .map(|one| format!("{}: {}", text(one, "what"), text(one, "detail")))
        .collect()
}

/// Runs what `check --script` prints by psql, as a superuser, and stops at the first error.
fn mend(orders: &Orders, config: &RelayConfig) -> String {
    let printed = config.outboxd(&["check", "--script"]);
    assert_eq!(printed.status.code(), Some(1), "{}", said(&printed));
    let script = String::from_utf8(printed.stdout).unwrap();
    let psql = Postgres::client_program("psql").expect("psql is installed");
    let mut psql = Command::new(psql)
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &orders.database.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run psql");
    let mut stdin = psql.stdin.take().expect("a pipe");
    stdin.write_all(script.as_bytes()).expect("psql reads");
    drop(stdin);
    let done = psql.wait_with_output().expect("psql ends");
    assert!(done.status.success(), "{script}\n{}", said(&done));
    script
}

#[track_caller]
fn assert_complete(config: &RelayConfig) {
    let checked = config.outboxd(&["check"]);
    assert!(checked.status.success(), "{}", said(&checked));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_round_of_check_names_everything_in_order_and_its_script_mends_it() {
    let postgres = Postgres::shared(USUAL).await;
    for (mode, mark) in [
        ("replication", "sent_at"),
        ("polling", "ledger"),
        ("replication", "delete"),
    ] {
        let (orders, config) = bare(postgres).await;
        let config = config.mode(mode).mark(mark).table("\"my shop\".outbox");
        let found = missing(&config);
        let mut expected = vec![
            "table: schema `my shop` does not exist",
            "state: the relay's state in schema `outboxd` is not there",
            "right: right of",
        ];
        if mode == "replication" {
            expected.insert(0, "REPLICATION: role");
            expected.push("publication: publication `");
        }
        for part in expected {
            assert!(
                found.iter().any(|one| one.starts_with(part)),
                "{mode} {mark}: {part} is not in {found:#?}"
            );
        }
        let place = |part: &str| found.iter().position(|one| one.starts_with(part));
        assert!(
            place("table") < place("state") && place("state") < place("right"),
            "{found:#?}"
        );
        mend(&orders, &config);
        assert_complete(&config);
        let mut relay = Relay::start(&config);
        let insert = "INSERT INTO \"my shop\".outbox (aggregatetype, aggregateid, type, payload) \
                      VALUES ('order', 'a', 'placed', '{}') RETURNING id";
        let row = orders.client.query_one(insert, &[]).await.unwrap();
        orders.wait_for(&[row.get(0)]).await;
        assert!(relay.terminate().success());
        let nothing = config.outboxd(&["check", "--script"]);
        assert!(nothing.status.success(), "{}", said(&nothing));
        assert!(
            said(&nothing).contains("Nothing is missing"),
            "{}",
            said(&nothing)
        );
    }
}

/// The column that the mark needs comes first, and the rights to its sequence with all others.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_the_marks_column_is_mended_with_all_else() {
    let postgres = Postgres::shared(USUAL).await;
    for (mark, column) in [("ledger", "seq"), ("sent_at", "sent_at")] {
        let (orders, config) = bare(postgres).await;
        orders.run(FIVE_COLUMNS).await;
        let config = config.mark(mark);
        let found = missing(&config).join("\n");
        for part in [
            &format!("the table has no column `{column}`"),
            "state: ",
            "publication: ",
            "REPLICATION: ",
        ] {
            assert!(found.contains(part), "{mark}: {part} is not in {found}");
        }
        mend(&orders, &config);
        assert_complete(&config);
    }
}

/// Somebody has migrated, and nobody has named the relay's role.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_closed_hides_nothing_else_that_is_missing() {
    let (orders, config) = bare(Postgres::shared(USUAL).await).await;
    orders.config.migrate();
    let found = missing(&config).join("\n");
    for part in [
        "is closed to role",
        "to read the table",
        "to read the sequence",
        "to keep its state",
    ] {
        assert!(found.contains(part), "{part} is not in {found}");
    }
    mend(&orders, &config);
    assert_complete(&config);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_of_a_server_without_logical_decoding_holds_after_its_restart() {
    let mut postgres = Postgres::start_with(
        USUAL,
        &[("wal_level", "replica"), ("max_replication_slots", "0")],
    );
    let (orders, config) = bare(&postgres).await;
    let found = missing(&config);
    for part in [
        "wal_level: ",
        "max_replication_slots: ",
        "REPLICATION: ",
        "table: ",
        "state: ",
        "publication: ",
    ] {
        assert!(
            found.iter().any(|one| one.starts_with(part)),
            "{part} is not in {found:#?}"
        );
    }
    let script = mend(&orders, &config);
    let place = |part: &str| {
        script
            .find(part)
            .unwrap_or_else(|| panic!("{part}: {script}"))
    };
    assert!(
        place("restart PostgreSQL") < place("ALTER ROLE")
            && place("ALTER ROLE") < place("CREATE TABLE")
    );
    postgres.stop(Stop::Fast);
    postgres.restart();
    assert_complete(&config);
}

/// What is in the way, what is said, and what mends it.
#[tokio::test(flavor = "multi_thread")]
async fn migrate_asks_before_its_first_step_for_what_would_stop_it() {
    let postgres = Postgres::shared(USUAL).await;
    for (before, says, by_hand) in [
        ("REVOKE CREATE ON DATABASE {d} FROM PUBLIC, {m}", "may not create schemas and publications in database", None),
        ("REVOKE CREATE ON SCHEMA public FROM {m}", "may not create anything in schema `public`", None),
        ("CREATE SCHEMA outboxd", "may not create tables in schema `outboxd`", None),
        ("CREATE SCHEMA outboxd; CREATE VIEW outboxd.lease AS SELECT 1; GRANT ALL ON SCHEMA outboxd TO {m}", "`outboxd.lease` is a view", None),
        ("CREATE TYPE outbox AS ENUM ('a')", "a type is called `public.outbox`", Some("DROP TYPE outbox")),
        (
            "CREATE FUNCTION outbox_publish(text, text, text, json, jsonb, text, text, bigint, text, text, text, text, timestamptz, uuid)
             RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "stands already and gives something else than a uuid",
            Some("DROP FUNCTION outbox_publish"),
        ),
        ("CREATE VIEW outbox_status AS SELECT 1; COMMENT ON VIEW outbox_status IS 'outboxd: which rows were sent'", "the view `public.outbox_status` belongs to role `postgres`", None),
    ] {
        let orders = Orders::bare(postgres, "one_round").await;
        let (database, migrator) = (&orders.database.name, format!("{}_m", orders.database.name));
        orders
            .run(&format!(
                "CREATE ROLE {migrator} LOGIN; GRANT CREATE ON DATABASE {database} TO {migrator};
                 GRANT ALL ON SCHEMA public TO {migrator}"
            ))
            .await;
        orders.run(&before.replace("{d}", database).replace("{m}", &migrator)).await;
        let url = orders.database.url.replace("//postgres@", &format!("//{migrator}@"));
        let config = orders.config.clone().mode("polling").set("source.url", url);
        let arguments = ["migrate", "--relay-role", &migrator];
        let objects = objects(&orders).await;
        let done = config.outboxd(&arguments);
        assert_eq!(done.status.code(), Some(1), "{before}: {}", said(&done));
        assert!(said(&done).contains(says), "{before}: {}", said(&done));
        assert!(said(&done).contains("nothing was done"), "{before}: {}", said(&done));
        assert_eq!(self::objects(&orders).await, objects, "{before}: migrate did a step");
        match by_hand {
            Some(sql) => orders.run(sql).await,
            None => {
                let text = said(&done);
                let (_, remedy) = text.split_once("by a superuser or the owner:\n").expect(&text);
                orders.run(remedy).await;
            }
        }
        let done = config.outboxd(&arguments);
        assert!(done.status.success(), "{before}: {}", said(&done));
    }
}

/// A role that is misspelt is no reason to make half of a database.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_does_not_exist_is_named_before_the_first_step() {
    let orders = Orders::bare(Postgres::shared(USUAL).await, "one_round").await;
    let before = objects(&orders).await;
    for flag in ["--relay-role", "--application-role"] {
        let done = orders
            .config
            .outboxd(&["migrate", flag, "no such \"role\""]);
        assert_eq!(done.status.code(), Some(1), "{}", said(&done));
        for part in [
            "role `no such \"role\"` does not exist",
            "CREATE ROLE \"no such \"\"role\"\"\" LOGIN;",
        ] {
            assert!(said(&done).contains(part), "{}", said(&done));
        }
        assert_eq!(objects(&orders).await, before);
    }
}

async fn objects(orders: &Orders) -> i64 {
    let sql = "SELECT (SELECT count(*) FROM pg_class) + (SELECT count(*) FROM pg_namespace) + (SELECT count(*) FROM pg_proc)
               + (SELECT count(*) FROM pg_publication)";
    orders.client.query_one(sql, &[]).await.unwrap().get(0)
}
