//! The commands as people and scripts use them: what they print, what they exit with, what a running relay answers.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Database, Postgres, Stop, USUAL};
use crate::harness::relay::{OUTBOXD, Relay, RelayConfig, outboxd, said};
use crate::harness::topic::TopicReader;
use crate::harness::{SOON, wait_until, workspace};

const COMMANDS: [&[&str]; 14] = [
    &["run"],
    &["check"],
    &["migrate"],
    &["status"],
    &["slot", "status"],
    &["slot", "drop"],
    &["blocked", "list"],
    &["blocked", "show"],
    &["blocked", "retry"],
    &["blocked", "skip"],
    &["dead-letters", "list"],
    &["dead-letters", "show"],
    &["dead-letters", "replay"],
    &["dead-letters", "discard"],
];

/// A migrated database and the topic of its orders.
struct Scene {
    database: Database,
    client: Client,
    kafka: &'static Kafka,
    config: RelayConfig,
}

impl Scene {
    async fn new(mode: &str) -> Self {
        let postgres = Postgres::shared(USUAL).await;
        let kafka = Kafka::shared().await;
        let database = postgres.create_database("commands").await;
        let config = RelayConfig::new(&database, kafka).mode(mode);
        config.migrate();
        kafka.create_topic(&config.topic_of("order"), 3, &[]).await;
        let client = database.client().await;
        Self {
            database,
            client,
            kafka,
            config,
        }
    }

    fn reader(&self) -> TopicReader {
        self.kafka.reader(&[&self.config.topic_of("order")])
    }
}

async fn insert(client: &Client) -> Uuid {
    let id = Uuid::new_v4();
    let sql = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
               VALUES ($1, 'order', 'order-1', 'Made', '{}')";
    client.execute(sql, &[&id]).await.expect("insert a row");
    id
}

async fn wait_for_row(reader: &mut TopicReader, id: Uuid) {
    let id = id.to_string();
    wait_until("the row is in Kafka", SOON, async || {
        let reads = tokio::task::block_in_place(|| reader.read_to_end());
        let is_there = reads.iter().any(|read| read.header("id") == Some(&id));
        is_there.then_some(()).ok_or("it is not")
    })
    .await;
}

async fn wait_for_state(relay: &Relay, state: &str) {
    wait_until(&format!("the relay is {state}"), SOON, async || {
        let status = relay.try_status()?;
        let is_there = status["state"] == state;
        is_there.then_some(()).ok_or(status.to_string())
    })
    .await;
}

#[test]
fn the_help_of_every_command_tells_of_its_configuration() {
    let all = said(&outboxd(&["--help"]));
    for command in COMMANDS {
        assert!(
            all.contains(command[0]),
            "`{}` is not in: {all}",
            command[0]
        );
        let done = outboxd(&[command, &["--help"]].concat());
        assert_eq!(done.status.code(), Some(0));
        let text = said(&done);
        assert!(text.contains("--config"), "{command:?}: {text}");
    }
}

#[test]
fn wrong_arguments_exit_with_two() {
    for arguments in [
        &["fly"][..],
        &["run"],
        &["check", "--config"],
        &["run", "--config", "no-such-file.toml"],
    ] {
        let done = outboxd(arguments);
        assert_eq!(
            done.status.code(),
            Some(2),
            "{arguments:?}: {}",
            said(&done)
        );
    }
}

/// What is printed in backticks, or stands on a line of its own, does what it says when it is pasted.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_are_printed_can_be_pasted() {
    let scene = Scene::new("replication").await;
    let file = scene.config.write();
    let run = |arguments: &str| {
        let words: Vec<&str> = arguments.split(' ').collect();
        said(&outboxd(&words))
    };
    let config = format!("--config {}", file.display());
    let text = run(&format!("slot drop {config}"));
    let drop = format!("`outboxd slot drop --yes {config}`");
    assert!(text.contains(&drop), "{text}");
    let text = run(&format!("slot drop --yes {config}"));
    assert!(text.contains("is dropped"), "{text}");
    let text = run(&format!("slot status {config}"));
    assert!(
        text.contains(&format!("`outboxd migrate {config}` creates it")),
        "{text}"
    );
    for (arguments, command) in [
        (
            format!("blocked skip x --note why {config}"),
            format!("`outboxd blocked skip x --yes --note why {config}`"),
        ),
        (
            format!("dead-letters discard 1 2 {config}"),
            format!("`outboxd dead-letters discard 1 2 --yes {config}`"),
        ),
    ] {
        let text = run(&arguments);
        assert!(text.contains(&command), "{text}");
    }
    let drop = scene.database.client().await;
    drop.batch_execute("DROP TABLE outbox CASCADE")
        .await
        .unwrap();
    let text = run(&format!("check --json {config}"));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let create = format!("`outboxd migrate {config}` creates it");
    assert!(report.to_string().contains(&create), "{text}");
}

#[test]
fn the_configuration_is_found_without_an_argument() {
    let folder = workspace::folder("variable");
    let (file, missing) = (folder.join("o.toml"), folder.join("missing.toml"));
    std::fs::write(&file, "[sorce]\n").expect("write a configuration");
    let status = |variable: &std::path::Path| {
        let mut command = std::process::Command::new(OUTBOXD);
        let done = command.arg("status").env("OUTBOXD_CONFIG", variable);
        let done = done.output().expect("run outboxd");
        assert_eq!(done.status.code(), Some(2), "{}", said(&done));
        said(&done)
    };
    let text = status(&file);
    assert!(text.contains("o.toml:1: unknown key `sorce`"), "{text}");
    let text = status(&missing);
    assert!(
        text.contains("missing.toml") && text.contains("OUTBOXD_CONFIG"),
        "{text}"
    );
    let text = said(&outboxd(&["status"]));
    for place in ["--config", "OUTBOXD_CONFIG", "/etc/outboxd/outboxd.toml"] {
        assert!(text.contains(place), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_complete_on_a_fresh_migration() {
    for mode in ["replication", "polling"] {
        let scene = Scene::new(mode).await;
        let done = scene.config.outboxd(&["check"]);
        assert!(done.status.success(), "{mode}: {}", said(&done));
        let done = scene.config.outboxd(&["check", "--json"]);
        let report: Value = serde_json::from_slice(&done.stdout).expect("check prints JSON");
        assert!(report.is_object(), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_where_no_index_finds_the_rows_without_sent_at() {
    let database = Postgres::shared(USUAL)
        .await
        .create_database("commands")
        .await;
    let config = RelayConfig::new(&database, Kafka::shared().await)
        .mode("polling")
        .mark("sent_at");
    config.migrate();
    let client = database.client().await;
    let create =
        "CREATE INDEX CONCURRENTLY ON \"public\".\"outbox\" (\"seq\") WHERE sent_at IS NULL;";
    for (change, is_said) in [
        ("SELECT", false),
        ("DROP INDEX outbox_seq_idx", true),
        (create, false),
    ] {
        client.batch_execute(change).await.expect(change);
        let done = config.outboxd(&["check"]);
        assert_eq!(said(&done).contains(create), is_said, "{}", said(&done));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_answered_by_the_relay_and_without_one_by_the_database() {
    for mode in ["replication", "polling"] {
        let scene = Scene::new(mode).await;
        let mut relay = Relay::start(&scene.config);
        let id = insert(&scene.client).await;
        wait_for_row(&mut scene.reader(), id).await;
        wait_for_state(&relay, "publishing").await;
        let config = relay.config().clone();
        assert_status(&config, mode, "relay");
        // By replication one session reads the table, the next one the slot.
        wait_until("status tells it all", SOON, async || {
            let text = said(&config.outboxd(&["status"]));
            let parts = [
                "public.outbox",
                mode,
                "ledger",
                "leader",
                "publishing",
                "lag",
            ];
            match parts.iter().find(|part| !text.contains(**part)) {
                None => Ok(()),
                Some(part) => Err(format!("`{part}` is not in: {text}")),
            }
        })
        .await;
        assert!(relay.terminate().success());
        let status = assert_status(&config, mode, "database");
        assert_eq!(status["role"], "stopped", "{status}");
        insert(&scene.client).await;
        let status = assert_status(&config, mode, "database");
        assert_eq!(status["lag"]["rows"], 1, "{status}");
        let text = said(&config.outboxd(&["status"]));
        assert!(
            text.contains("the database") && text.contains("1 rows"),
            "{text}"
        );
    }
}

/// Two outboxes with one `admin.listen`.
#[tokio::test(flavor = "multi_thread")]
async fn status_says_that_another_relay_answers() {
    let (scene, other) = (Scene::new("polling").await, Scene::new("polling").await);
    let relay = Relay::start(&scene.config);
    wait_for_state(&relay, "publishing").await;
    let status = relay.try_status().expect("a status");
    assert_eq!(status["database"], scene.database.name.as_str(), "{status}");
    let server = format!("127.0.0.1:{}", scene.database.port());
    assert_eq!(status["server"], server, "{status}");
    let listen = format!("127.0.0.1:{}", relay.admin_port());
    let config = other.config.clone().set("admin.listen", listen.as_str());
    let done = config.outboxd(&["status"]);
    let text = said(&done);
    assert_eq!(done.status.code(), Some(1), "{text}");
    for part in [
        format!("another relay answers at {listen}"),
        format!("database {}", scene.database.name),
        format!("{} on {server}", other.database.name),
    ] {
        assert!(text.contains(&part), "`{part}` is not in: {text}");
    }
    let done = config.outboxd(&["status", "--json"]);
    let answer: Value = serde_json::from_slice(&done.stdout).expect("status prints JSON");
    assert_eq!(answer["answered_by"], "database");
    assert_eq!(answer["another_relay"], true);
    // The same server under another name is the same relay.
    let url = scene.database.url.replace("127.0.0.1", "localhost");
    let config = scene.config.clone().set("source.url", url);
    let config = config.set("admin.listen", listen.as_str());
    assert_status(&config, "polling", "relay");
}

fn assert_status(config: &RelayConfig, mode: &str, answered_by: &str) -> Value {
    let done = config.outboxd(&["status", "--json"]);
    assert!(done.status.success(), "{}", said(&done));
    let status: Value = serde_json::from_slice(&done.stdout).expect("status prints JSON");
    assert_eq!(status["answered_by"], answered_by, "{status}");
    assert_eq!(status["mode"], mode);
    assert_eq!(status["mark"], "ledger");
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_relay_answers_on_its_admin_address() {
    let scene = Scene::new("replication").await;
    let relay = Relay::start(&scene.config);
    let id = insert(&scene.client).await;
    wait_for_row(&mut scene.reader(), id).await;
    wait_for_state(&relay, "publishing").await;
    wait_until(
        "a strict reader finds it ready",
        SOON,
        async || match relay.get("/readyz?strict")? {
            (200, _) => Ok(()),
            (code, body) => Err(format!("{code} {body}")),
        },
    )
    .await;
    for path in ["/livez", "/readyz", "/status", "/metrics"] {
        let (code, body) = relay.get(path).expect("an answer");
        assert!(code == 200 && !body.is_empty(), "{path}: {code} {body}");
    }
    assert_eq!(relay.metric("outboxd_publishes").await, Some(1.0));
    assert_eq!(
        relay.metric("outboxd_published_rows_total").await,
        Some(1.0)
    );
    let (_, metrics) = relay.get("/metrics").expect("an answer");
    assert!(
        metrics.contains(r#"outboxd_role{role="leader"} 1"#),
        "{metrics}"
    );
    assert_eq!(relay.get("/elsewhere").expect("an answer").0, 404);
}

/// Rows in flight might be waited for without end; none are.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_relay_and_frees_the_slot() {
    let scene = Scene::new("replication").await;
    let mut relay = Relay::start(&scene.config.clone().set("shutdown.grace", "1h"));
    let id = insert(&scene.client).await;
    wait_for_row(&mut scene.reader(), id).await;
    wait_for_state(&relay, "publishing").await;
    let status = relay.terminate();
    assert_eq!(status.code(), Some(0));
    let sql =
        "SELECT count(*) FROM pg_replication_slots WHERE active AND database = current_database()";
    let active: i64 = scene
        .client
        .query_one(sql, &[])
        .await
        .expect("read the slots")
        .get(0);
    assert_eq!(
        active, 0,
        "the slot of {} is still read",
        scene.database.name
    );
    let text = said(&scene.config.outboxd(&["slot", "status"]));
    assert!(
        text.contains(&format!("outboxd_{}", scene.database.name)),
        "{text}"
    );
}

/// One of ten rows at least: the machine may be busy with other tests. `make demo` and `make bench` measure latency.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_in_kafka_within_a_second() {
    for mode in ["replication", "polling"] {
        let scene = Scene::new(mode).await;
        let _relay = Relay::start(&scene.config);
        let mut reader = scene.reader();
        let id = insert(&scene.client).await;
        wait_for_row(&mut reader, id).await;
        let mut took = Vec::new();
        while took
            .last()
            .is_none_or(|took| *took > Duration::from_secs(1))
        {
            assert!(took.len() < 10, "{mode}: {took:?}");
            let id = insert(&scene.client).await;
            let committed_at = Instant::now();
            wait_for_row(&mut reader, id).await;
            took.push(committed_at.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_starts_before_its_servers_waits_for_both() {
    let (mut postgres, mut kafka) = (Postgres::start(USUAL), Kafka::start());
    let database = postgres.create_database("waits").await;
    let config = RelayConfig::new(&database, &kafka);
    config.migrate();
    let topic = config.topic_of("order");
    kafka.create_topic(&topic, 1, &[]).await;
    let id = insert(&database.client().await).await;
    postgres.stop(Stop::Fast);
    kafka.kill();
    let mut relay = Relay::start(&config);
    wait_until("the relay says what it waits for", SOON, async || {
        let status = relay.try_status()?;
        let is_waiting = status["postgres"]["is_up"] == false && status["state"] != "publishing";
        is_waiting.then_some(()).ok_or(status.to_string())
    })
    .await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(relay.get(path).expect("an answer").0, 200, "{path}");
    }
    assert_eq!(relay.get("/readyz?strict").expect("an answer").0, 503);
    postgres.restart();
    wait_until("PostgreSQL is seen", SOON, async || {
        let status = relay.try_status()?;
        let is_up = status["postgres"]["is_up"] == true;
        is_up.then_some(()).ok_or(status.to_string())
    })
    .await;
    assert!(relay.is_running());
    kafka.restart();
    wait_for_row(&mut kafka.reader(&[&topic]), id).await;
    assert!(relay.terminate().success());
}
