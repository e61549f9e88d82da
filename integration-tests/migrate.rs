//! `migrate` and `slot`: what is created once, what a second run finds, and who may do what with it.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::error::SqlState;

use crate::harness::postgres::{Postgres, USUAL, connect};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::orders::{Orders, wait_for_reason, wait_for_status};

const MODES: [&str; 2] = ["replication", "polling"];
const MARKS: [&str; 4] = ["ledger", "sent_at", "delete", "none"];

static ROLES: AtomicU32 = AtomicU32::new(0);

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_finds_everything_and_check_is_complete() {
    for (mode, mark) in pairs() {
        let orders = bare(mode).await;
        let config = orders.config.clone().mark(mark);
        let first = migrate(&config, &[]);
        assert!(first.contains("table `public.outbox` … done"), "{first}");
        let has_slot = first.contains("creating       slot");
        assert_eq!(has_slot, mode == "replication", "{first}");
        let second = migrate(&config, &[]);
        assert!(
            second.lines().all(|line| line.starts_with("already there")),
            "{mode} {mark}: {second}"
        );
        assert_eq!(second.lines().count(), first.lines().count());
        assert_complete(&config);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_sql_makes_what_a_fresh_database_needs() {
    for (mode, mark) in pairs() {
        let orders = bare(mode).await;
        let config = orders.config.clone().mark(mark);
        // Nothing is asked of a server: the URL leads nowhere.
        let away = config
            .clone()
            .set("source.url", "postgres://u@127.0.0.1:1/d");
        let printed = away.outboxd(&["migrate", "--print"]);
        assert!(printed.status.success(), "{}", said(&printed));
        let script = String::from_utf8(printed.stdout).unwrap();
        // Twice in one server: the group role of the first is there for the second.
        orders.run(&script).await;
        assert_complete(&config);
        let again = migrate(&config, &[]);
        assert!(
            again.lines().all(|line| line.starts_with("already there")),
            "{mode} {mark}: {again}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_with_quotes_and_blanks_work_in_both_modes() {
    for mode in MODES {
        let orders = bare(mode).await;
        let name = format!("pub \"{}\" 'x'", orders.database.name);
        let config = orders
            .config
            .clone()
            .table(r#""my ""Schema"""."it's "";{table}""#)
            .set("source.replication.publication", name);
        orders.run(r#"CREATE SCHEMA "my ""Schema""""#).await;
        migrate(&config, &[]);
        let second = migrate(&config, &[]);
        assert!(
            second.lines().all(|line| line.starts_with("already there")),
            "{second}"
        );
        let relay = Relay::start(&config);
        let sql = r#"INSERT INTO "my ""Schema"""."it's "";{table}" (aggregatetype, aggregateid, type)
                     VALUES ('order', 'a', 'placed') RETURNING id"#;
        let row = orders.client.query_one(sql, &[]).await.unwrap();
        orders.wait_for(&[row.get(0)]).await;
        wait_for_status(&relay, "it publishes", |status| {
            status["state"] == "publishing"
        })
        .await;
        let sent = r#"SELECT count(*) FROM "my ""Schema"""."it's "";{table}_status" WHERE sent"#;
        crate::harness::wait_until(
            "it is marked",
            crate::orders::ARRIVAL,
            async || match orders.client.query_one(sent, &[]).await.unwrap().get(0) {
                1_i64 => Ok(()),
                other => Err(other),
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_may_insert_and_nothing_else() {
    let orders = bare("polling").await;
    let application = create_role(&orders, "").await;
    migrate(&orders.config, &["--application-role", &application]);
    let url = as_role(&orders, &application);
    let client = connect(&url).await;
    for insert in [
        "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', 'a', 'placed', '{}')",
        "SELECT outbox_publish('order', 'a', 'placed', '{\"n\": 1}')",
        "SELECT outbox_publish(aggregatetype => 'order', aggregateid => 'a', type => 'placed', payload => NULL, \
         headers => '{\"k\": \"v\"}')",
        "BEGIN; SET LOCAL outbox.traceparent = '00-1-2-01'; SELECT outbox_publish('order', 'a', 'placed', NULL); COMMIT",
    ] {
        client
            .batch_execute(insert)
            .await
            .unwrap_or_else(|error| panic!("{insert}: {error:?}"));
    }
    let rows = "SELECT count(*), count(traceparent), count(headers) FROM outbox";
    let rows = orders.client.query_one(rows, &[]).await.unwrap();
    let counts: (i64, i64, i64) = (rows.get(0), rows.get(1), rows.get(2));
    assert_eq!(counts, (4, 1, 1));
    for refused in [
        "SELECT FROM outbox",
        "SELECT FROM outbox_status",
        "UPDATE outbox SET type = 'x'",
        "DELETE FROM outbox",
        "TRUNCATE outbox",
        "SELECT last_value FROM outbox_seq_seq",
        "SELECT setval('outbox_seq_seq', 1)",
        "SELECT FROM outboxd.ledger",
        "UPDATE outboxd.lease SET epoch = 9",
        "DROP TABLE outbox",
    ] {
        let error = client.batch_execute(refused).await.expect_err(refused);
        assert_eq!(
            error.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{refused}: {error:?}"
        );
    }
    // Numbers are the table's alone to give.
    let own_number =
        "INSERT INTO outbox (aggregatetype, aggregateid, type, seq) VALUES ('order', 'a', 'x', 1)";
    let error = client
        .batch_execute(own_number)
        .await
        .expect_err(own_number);
    assert_eq!(error.code(), Some(&SqlState::GENERATED_ALWAYS), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_to_public() {
    let orders = bare("replication").await;
    let (relay, application) = (
        create_role(&orders, "").await,
        create_role(&orders, "").await,
    );
    let roles = ["--relay-role", &relay, "--application-role", &application];
    migrate(&orders.config, &roles);
    let rows = orders.client.query(PUBLIC, &[]).await.unwrap();
    let granted: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(granted, [""; 0]);
    // And no such default shows elsewhere: a role that was named nowhere may nothing.
    let anybody = create_role(&orders, "").await;
    let client = connect(&as_role(&orders, &anybody)).await;
    for refused in [
        "SELECT outbox_publish('order', 'a', 'placed', NULL)",
        "INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('order', 'a', 'x')",
        "SELECT FROM outbox",
        "SELECT FROM outbox_status",
        "SELECT last_value FROM outbox_seq_seq",
        "SELECT FROM outboxd.ledger",
        "SELECT FROM outboxd.outbox",
    ] {
        let error = client.batch_execute(refused).await.expect_err(refused);
        let denied = Some(&SqlState::INSUFFICIENT_PRIVILEGE);
        assert_eq!(error.code(), denied, "{refused}: {error:?}");
    }
}

/// What PUBLIC may with what `migrate` makes; defaults that no row of the catalog shows included.
const PUBLIC: &str = "
    SELECT what || ' ' || name || ': ' || privilege_type FROM (
        SELECT 'relation' AS what, c.relname::text AS name,
               coalesce(c.relacl, acldefault((CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END)::\"char\", c.relowner)) AS acl
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'outboxd' OR n.nspname = 'public' AND c.relname LIKE 'outbox%'
        UNION ALL
        SELECT 'function', p.proname::text, coalesce(p.proacl, acldefault('f', p.proowner))
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname IN ('outboxd', 'public')
        UNION ALL
        SELECT 'schema', n.nspname::text, coalesce(n.nspacl, acldefault('n', n.nspowner))
        FROM pg_namespace n WHERE n.nspname = 'outboxd') objects,
        aclexplode(acl)
    WHERE grantee = 0";

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_role_that_is_no_superuser_runs_every_mode_and_mark() {
    for (mode, mark) in pairs() {
        let orders = bare(mode).await;
        let right = if mode == "replication" {
            "REPLICATION"
        } else {
            ""
        };
        let role = create_role(&orders, right).await;
        let config = orders.config.clone().mark(mark);
        migrate(&config, &["--relay-role", &role]);
        let config = config.set("source.url", as_role(&orders, &role));
        assert_complete(&config);
        let _relay = Relay::start(&config);
        orders.wait_for(&orders.insert(5).await).await;
        if mark != "none" {
            orders.wait_until_marked().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_creates_what_its_role_may_create() {
    for mode in MODES {
        let orders = bare(mode).await;
        let role = create_role(&orders, "REPLICATION").await;
        let name = &orders.database.name;
        orders
            .run(&format!(
                "GRANT CREATE ON DATABASE {name} TO {role}; GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role}; \
                 CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, \
                 aggregateid text NOT NULL, type text NOT NULL, payload json, \
                 seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE); RESET ROLE"
            ))
            .await;
        let config = orders
            .config
            .clone()
            .set("source.url", as_role(&orders, &role));
        let ids = orders.insert(3).await;
        let config = config.set("source.start", "all");
        let _relay = Relay::start(&config);
        orders.wait_for(&ids).await;
        orders.wait_until_marked().await;
        assert_complete(&config);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_its_state_tables_asks_for_migrate_where_it_may_not_create_them() {
    let orders = bare("polling").await;
    let role = create_role(&orders, "").await;
    migrate(&orders.config, &["--relay-role", &role]);
    orders.run("DROP SCHEMA outboxd CASCADE").await;
    let config = orders
        .config
        .clone()
        .set("source.url", as_role(&orders, &role));
    let relay = Relay::start(&config);
    let status = wait_for_reason(&relay, "halted", "may not create").await;
    assert!(
        status["reason"]
            .as_str()
            .unwrap_or_default()
            .contains("`outboxd migrate`"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_status_tells_and_slot_drop_asks_before_it_drops() {
    let orders = bare("replication").await;
    let slot = format!("outboxd_{}", orders.database.name);
    let config = &orders.config;
    let status = config.outboxd(&["slot", "status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(
        said(&status).contains(&format!("slot `{slot}` does not exist")),
        "{}",
        said(&status)
    );
    migrate(config, &[]);
    let status = config.outboxd(&["slot", "status", "--json"]);
    assert!(status.status.success(), "{}", said(&status));
    let json: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(json["name"], slot.as_str());
    assert_eq!(json["plugin"], "pgoutput");
    assert_eq!(json["database"], orders.database.name.as_str());
    let asks = config.outboxd(&["slot", "drop"]);
    assert_eq!(asks.status.code(), Some(1));
    assert!(said(&asks).contains("--yes"), "{}", said(&asks));
    // After a switch to polling the slot only keeps WAL: it is named.
    let check = config.clone().mode("polling").outboxd(&["check"]);
    assert!(check.status.success(), "{}", said(&check));
    assert!(
        said(&check).contains("polling does not use it"),
        "{}",
        said(&check)
    );
    assert!(
        said(&check).contains("outboxd slot drop --yes"),
        "{}",
        said(&check)
    );
    let dropped = config.outboxd(&["slot", "drop", "--yes"]);
    assert!(dropped.status.success(), "{}", said(&dropped));
    let again = config.outboxd(&["slot", "drop", "--yes"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("does not exist"), "{}", said(&again));
}

fn pairs() -> impl Iterator<Item = (&'static str, &'static str)> {
    let pairs = MODES
        .into_iter()
        .flat_map(|mode| MARKS.map(|mark| (mode, mark)));
    pairs.filter(|pair| *pair != ("polling", "none"))
}

async fn bare(mode: &str) -> Orders {
    let mut orders = Orders::bare(Postgres::shared(USUAL).await, "migrate").await;
    orders.config = orders.config.mode(mode);
    orders
}

fn migrate(config: &RelayConfig, arguments: &[&str]) -> String {
    let done = config.outboxd(&[&["migrate"], arguments].concat());
    assert!(done.status.success(), "{}", said(&done));
    said(&done)
}

fn assert_complete(config: &RelayConfig) {
    let check = config.outboxd(&["check"]);
    assert!(check.status.success(), "{}", said(&check));
}

async fn create_role(orders: &Orders, attributes: &str) -> String {
    // Roles belong to the server, which other subjects use too.
    let role = format!("migrated_{}", ROLES.fetch_add(1, Ordering::Relaxed));
    orders
        .run(&format!("CREATE ROLE {role} LOGIN {attributes}"))
        .await;
    role
}

fn as_role(orders: &Orders, role: &str) -> String {
    orders
        .database
        .url
        .replace("//postgres@", &format!("//{role}@"))
}
