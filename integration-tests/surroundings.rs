//! What stands around a relay's PostgreSQL: poolers, servers and roles that take no writes, standbys that do not answer,
//! limits. It waits, and says in `check`, `/status` and log for what.

mod pooler;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::harness::{SOON, wait_until};
use crate::orders::{Orders, wait_for_status};

static ROLES: AtomicU32 = AtomicU32::new(0);

/// An outbox whose relay has a role of its own, with these settings.
async fn with_role(mode: &str, settings: &[&str]) -> (Orders, String) {
    let postgres = Postgres::shared(USUAL).await;
    let mut orders = Orders::create(postgres, "around", |config| config.mode(mode)).await;
    let role = format!("around_{}", ROLES.fetch_add(1, Ordering::Relaxed));
    orders
        .run(&format!("CREATE ROLE {role} LOGIN REPLICATION"))
        .await;
    let granted = orders
        .config
        .outboxd(&["migrate", "--relay-role", role.as_str()]);
    assert!(granted.status.success(), "{}", said(&granted));
    for setting in settings {
        orders.run(&format!("ALTER ROLE {role} {setting}")).await;
    }
    let url = orders.database.url.clone();
    let url = url.replacen("//postgres@", &format!("//{role}@"), 1);
    orders.config = orders.config.set("source.url", url);
    (orders, role)
}

/// What `check` says, which must fail or not.
fn check(config: &RelayConfig, code: i32) -> String {
    let done = config.outboxd(&["check"]);
    assert_eq!(done.status.code(), Some(code), "{}", said(&done));
    said(&done)
}

/// Waits until the relay says why it waits, and in its log, too.
async fn await_reason(relay: &Relay, part: &str) {
    wait_for_status(relay, part, |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["state"] != "publishing" && reason.contains(part)
    })
    .await;
    relay.wait_for_log(part, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_takes_no_writes_is_named_and_waited_for() {
    for mode in ["replication", "polling"] {
        let setting = ["SET default_transaction_read_only = on"];
        let (orders, role) = with_role(mode, &setting).await;
        let text = check(&orders.config, 1);
        let remedy = format!("ALTER ROLE {role} RESET default_transaction_read_only;");
        assert!(text.contains(&remedy), "{text}");
        let relay = Relay::start(&orders.config);
        await_reason(&relay, "default_transaction_read_only").await;
        orders.run(&remedy).await;
        orders.wait_for(&orders.insert(3).await).await;
    }
}

/// As in a cutover from blue to green: the server is set so while the relay publishes.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_taking_writes_is_named_and_waited_for() {
    let postgres = Postgres::start(USUAL);
    let orders = Orders::create(&postgres, "cutover", |config| {
        config.mark("sent_at").set("lease.ttl", "4s")
    })
    .await;
    let relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(3).await).await;
    let writer = orders.database.client().await;
    let set = "SET default_transaction_read_only = off";
    writer.batch_execute(set).await.expect("may write");
    let alter = |sql: &'static str| {
        let client = &orders.client;
        async move {
            let sql = format!("ALTER SYSTEM {sql}");
            client.batch_execute(&sql).await.expect("change the server");
            let reload = "SELECT pg_reload_conf()";
            client.batch_execute(reload).await.expect("reload");
        }
    };
    alter("SET default_transaction_read_only = on").await;
    let insert = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', 'a', 'placed', '{}')";
    writer.batch_execute(insert).await.expect("insert");
    await_reason(&relay, "default_transaction_read_only").await;
    alter("RESET default_transaction_read_only").await;
    orders.wait_until_marked().await;
    assert_eq!(orders.published().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_standby_that_is_away_is_named_and_waited_for() {
    let postgres = Postgres::start(USUAL);
    let orders = Orders::create(&postgres, "standby", |config| config.set("lease.ttl", "4s")).await;
    orders
        .run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        .await;
    orders.run("SELECT pg_reload_conf()").await;
    let text = check(&orders.config, 0);
    assert!(text.contains("none of them answers"), "{text}");
    let relay = Relay::start(&orders.config);
    await_reason(&relay, "synchronous_standby_names").await;
    // Backends that wait for the standby are not added to, however long that takes.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waiting: i64 = orders.client.query_one(waiting, &[]).await.unwrap().get(0);
    assert!(waiting <= 2, "{waiting} backends wait");
    orders
        .run("ALTER SYSTEM RESET synchronous_standby_names")
        .await;
    orders.run("SELECT pg_reload_conf()").await;
    orders.wait_for(&orders.insert(3).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_connections_is_named_with_what_a_relay_needs() {
    for (mode, limit, kept) in [("replication", 5, 5), ("polling", 3, 3)] {
        let narrow = format!("CONNECTION LIMIT {limit}");
        let (orders, role) = with_role(mode, &[&narrow]).await;
        let text = check(&orders.config, 1);
        let remedy = format!("ALTER ROLE {role} CONNECTION LIMIT {};", kept + 1);
        assert!(text.contains(&narrow) && text.contains(&remedy), "{text}");
        let relay = Relay::start(&orders.config);
        await_reason(&relay, &remedy).await;
        orders.run(&remedy).await;
        orders.wait_for(&orders.insert(3).await).await;
        let own = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'");
        let own: i64 = orders.client.query_one(&own, &[]).await.unwrap().get(0);
        assert!(own <= kept, "{own} connections");
        let listed = orders.config.outboxd(&["blocked", "list"]);
        assert!(listed.status.success(), "{}", said(&listed));
    }
}

/// Three of them are reserved for superusers, and one is the test's.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_for_a_relay_is_warned_of() {
    let postgres = Postgres::start_with(USUAL, &[("max_connections", "8")]);
    let orders = Orders::create(&postgres, "room", |config| config).await;
    let text = check(&orders.config, 0);
    let warning =
        "warning  connections: a relay keeps 5, and 4 of max_connections = 8 are free for it";
    assert!(text.contains(warning), "{text}");
    let polling = orders.config.clone().mode("polling");
    assert!(check(&polling, 0).contains("ok       connections: a relay keeps 3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_idle_sessions_end_none_of_the_relays() {
    for (mode, kept) in [("replication", 5), ("polling", 3)] {
        let settings = [
            "SET idle_session_timeout = '1s'",
            "SET idle_in_transaction_session_timeout = '1s'",
        ];
        let (orders, role) = with_role(mode, &settings).await;
        let config = orders
            .config
            .clone()
            .set("source.replication.sweep", "60s")
            .set("source.polling.interval", "3s")
            .set("lease.ttl", "20s");
        let relay = Relay::start(&config);
        orders.wait_for(&orders.insert(3).await).await;
        let sessions = async || {
            let sql = format!(
                "SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity WHERE usename = '{role}'"
            );
            let row = orders.client.query_one(&sql, &[]).await;
            row.expect("list them").get::<_, Vec<i32>>(0)
        };
        let before = wait_until("the relay has all its sessions", SOON, async || {
            let sessions = sessions().await;
            match sessions.len() == kept {
                true => Ok(sessions),
                false => Err(format!("{}", sessions.len())),
            }
        })
        .await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(sessions().await, before, "{mode}: {}", relay.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_refused_before_the_first_step_of_a_migration() {
    let postgres = Postgres::start(USUAL);
    let orders = Orders::bare(&postgres, "endpoint").await;
    let Some(standby) = postgres.start_standby() else {
        return eprintln!("left out: pg_basebackup is not installed");
    };
    let url = standby.url(&orders.database.name);
    wait_until("the database is on the standby", SOON, async || {
        let client = crate::harness::postgres::try_connect(&url).await;
        client.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let config = orders.config.clone().set("source.url", url);
    let done = config.outboxd(&["migrate"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(1), "{text}");
    assert!(
        text.contains("standby") && text.contains("name the primary"),
        "{text}"
    );
    assert!(!text.contains("creating"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_the_state_that_were_dropped_are_told_and_made_again() {
    let orders = Orders::create(Postgres::shared(USUAL).await, "indexes", |config| config).await;
    let indexes = async || {
        let sql = "SELECT array_agg(indexdef::text ORDER BY indexdef) FROM pg_indexes WHERE schemaname = 'outboxd'";
        let row = orders.client.query_one(sql, &[]).await;
        row.expect("list the indexes").get::<_, Vec<String>>(0)
    };
    let all = indexes().await;
    orders.run("DROP INDEX outboxd.kept_by_state").await;
    let text = check(&orders.config, 0);
    assert!(text.contains("kept_by_state"), "{text}");
    orders.config.migrate();
    assert_eq!(indexes().await, all);
    let keys = "SELECT format('ALTER TABLE outboxd.%I DROP CONSTRAINT %I', c.relname, k.conname) FROM pg_constraint k
                JOIN pg_class c ON c.oid = k.conrelid
                WHERE c.relnamespace = 'outboxd'::regnamespace AND k.contype IN ('p', 'u')";
    for row in orders
        .client
        .query(keys, &[])
        .await
        .expect("list the constraints")
    {
        orders.run(row.get(0)).await;
    }
    let text = check(&orders.config, 1);
    assert!(text.contains("the relay's state"), "{text}");
    orders.config.migrate();
    assert_eq!(indexes().await, all);
    check(&orders.config, 0);
}

/// `ulimit -f`: the file of the log takes no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_may_not_grow_ends_nobody() {
    let orders = Orders::create(Postgres::shared(USUAL).await, "ulimit", |config| {
        config.set("log.level", "trace")
    })
    .await;
    const BYTES: usize = 16 << 10;
    let limit = format!("--fsize={BYTES}");
    let mut relay = Relay::start_under(&orders.config, &["prlimit", &limit]);
    wait_until("the log is full", SOON, async || {
        orders.insert(10).await;
        match relay.log().len() {
            BYTES.. => Ok(()),
            bytes => Err(format!("{bytes} bytes")),
        }
    })
    .await;
    orders.wait_for(&orders.insert(3).await).await;
    assert!(relay.is_running());
    assert_eq!(relay.terminate().code(), Some(0));
}

/// Not as a server that stops: everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_somebody_ends_is_told_as_such() {
    let orders = Orders::create(Postgres::shared(USUAL).await, "ended", |config| config).await;
    let relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(3).await).await;
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND backend_type = 'walsender'";
    wait_until("a walsender is ended", SOON, async || {
        match orders.client.query(sql, &[]).await.expect("end it").len() {
            1 => Ok(()),
            walsenders => Err(format!("{walsenders}")),
        }
    })
    .await;
    relay.wait_for_log("administrator command", SOON).await;
    orders.wait_for(&orders.insert(3).await).await;
    let log = relay.log();
    assert!(!log.contains("PostgreSQL is stopping"), "{log}");
}
