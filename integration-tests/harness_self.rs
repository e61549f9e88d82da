//! The harness itself: servers start and answer, writers and reader agree, and the judge finds what is planted.

use std::collections::HashMap;
use std::time::Duration;

use outboxd::config::Config;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use uuid::Uuid;

use crate::harness::kafka::Kafka;
use crate::harness::load::Load;
use crate::harness::murmur2::partition_of;
use crate::harness::oracle::{Oracle, Truth, Verdict, payload, truth};
use crate::harness::postgres::{MAJORS, Postgres, Stop, USUAL};
use crate::harness::relay::RelayConfig;
use crate::harness::topic::Read;
use crate::harness::{POLL, SOON, wait_until};

const TOPIC: &str = "outbox.event.order";

#[tokio::test(flavor = "multi_thread")]
async fn every_major_version_of_postgresql_starts_and_answers() {
    for major in MAJORS {
        let database = Postgres::shared(major)
            .await
            .create_database("answers")
            .await;
        let row = database
            .client()
            .await
            .query_one("SHOW server_version_num", &[])
            .await
            .unwrap();
        let version: String = row.get(0);
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, major);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_rows_through_every_way_to_stop() {
    let mut postgres = Postgres::start(USUAL);
    let database = postgres.create_database("stops").await;
    database
        .client()
        .await
        .batch_execute("CREATE TABLE kept (n int)")
        .await
        .unwrap();
    for round in 0..3_i64 {
        let client = database.client().await;
        client
            .batch_execute("INSERT INTO kept VALUES (1)")
            .await
            .unwrap();
        match round {
            0 => drop(postgres.stop(Stop::Fast)),
            1 => drop(postgres.stop(Stop::Immediate)),
            _ => postgres.kill(),
        }
        postgres.restart();
        let row = database
            .client()
            .await
            .query_one("SELECT count(*) FROM kept", &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, i64>(0), round + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_cluster_answers_again_when_it_is_thawed() {
    let postgres = Postgres::start(USUAL);
    let client = postgres.client("postgres").await;
    postgres.freeze();
    let answer = tokio::time::timeout(
        Duration::from_millis(300),
        client.query_one("SELECT 1", &[]),
    )
    .await;
    assert!(answer.is_err(), "a frozen server answered");
    postgres.thaw();
    client.query_one("SELECT 1", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_gives_back_key_value_and_headers() {
    let kafka = Kafka::shared().await;
    let topic = Kafka::unique_name("round-trip");
    kafka
        .create_topic(&topic, 3, &[("max.message.bytes", "2000000")])
        .await;
    assert!(kafka.read_topic(&topic).is_empty());
    produce(kafka, &[record(&topic, 1, "a", b"value")]);
    let reads = kafka.read_topic(&topic);
    assert_eq!(reads.len(), 1);
    assert_eq!(reads[0].key_text(), Some("a"));
    assert_eq!(reads[0].value_text(), Some("value"));
    assert_eq!(reads[0].partition, partition_of(b"a", 3));
    assert_eq!(
        reads[0].header("id"),
        Some(Uuid::from_u128(1).to_string().as_str())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_keeps_its_records_when_it_is_stopped_killed_or_frozen() {
    let mut kafka = Kafka::start();
    kafka.create_topic("kept", 1, &[]).await;
    produce(&kafka, &[record("kept", 1, "a", b"1")]);
    let mut reader = kafka.reader(&["kept"]);
    assert_eq!(reader.read_to_end().len(), 1);
    kafka.kill();
    kafka.restart();
    produce(&kafka, &[record("kept", 2, "a", b"2")]);
    kafka.stop();
    kafka.restart();
    kafka.freeze();
    kafka.thaw();
    produce(&kafka, &[record("kept", 3, "a", b"3")]);
    let values: Vec<_> = reader
        .read_to_end()
        .iter()
        .map(|read| read.value_text().unwrap().to_owned())
        .collect();
    assert_eq!(values, ["1", "2", "3"]);
}

/// The writers' rows, carried by hand in commit order, must satisfy the oracle; so loads and oracle agree.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_carried_faithfully_is_judged_clean() {
    let postgres = Postgres::shared(USUAL).await;
    let kafka = Kafka::shared().await;
    for payload_type in ["jsonb", "json", "text", "bytea"] {
        let database = postgres.create_database("load").await;
        let client = database.client().await;
        client
            .batch_execute(&outbox_of(payload_type))
            .await
            .unwrap();
        let load = Load {
            transactions: Some(100),
            copy: 0.2,
            two_phase: 0.1,
            aggregates: 12,
            ..Load::default()
        };
        let committed = load.run(&database.url).await;
        assert!(committed >= 100);
        let topic = Kafka::unique_name("load");
        kafka.create_topic(&topic, 4, &[]).await;
        let bytes = if payload_type == "bytea" {
            "payload"
        } else {
            "convert_to(payload::text, 'UTF8')"
        };
        // Under the aggregate's lock `seq` order is the aggregate's commit order.
        let sql = format!("SELECT id, aggregateid, {bytes} FROM outbox ORDER BY seq");
        let rows = client.query(&sql, &[]).await.unwrap();
        let carried = rows.iter().map(|row| {
            record(
                &topic,
                row.get::<_, Uuid>(0).as_u128(),
                row.get(1),
                row.get(2),
            )
        });
        produce(kafka, &carried.collect::<Vec<_>>());
        let mut oracle = Oracle::new(database.client().await, kafka.reader(&[&topic]));
        let verdict = oracle.verdict_when_drained(SOON).await;
        verdict.assert_clean(0);
        assert!(verdict.committed >= 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_lives_through_crashes_of_the_server() {
    let mut postgres = Postgres::start(USUAL);
    let database = postgres.create_database("crashes").await;
    let client = database.client().await;
    client.batch_execute(&outbox_of("jsonb")).await.unwrap();
    let running = Load {
        two_phase: 0.3,
        ..Load::default()
    }
    .start(&database.url)
    .await;
    for _ in 0..3 {
        running.progress(50, SOON).await;
        postgres.stop(Stop::Immediate);
        postgres.restart();
    }
    running.progress(50, SOON).await;
    assert!(running.stop().await >= 200);
    let client = database.client().await;
    let count = "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM pg_prepared_xacts)";
    let row = client.query_one(count, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), truth(&client).await.len() as i64);
    assert_eq!(row.get::<_, i64>(1), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "waited 100ms until pigs fly; last seen: a pig on the ground")]
async fn waiting_in_vain_says_what_was_last_seen() {
    wait_until("pigs fly", POLL * 2, async || {
        Err::<(), _>("a pig on the ground")
    })
    .await;
}

#[test]
fn the_relay_accepts_the_configurations_that_tests_build() {
    for (mode, mark) in [("replication", "ledger"), ("polling", "delete")] {
        let config = RelayConfig::of(
            "accepted_1",
            "postgres://postgres@127.0.0.1/accepted_1",
            "127.0.0.1:9092",
        )
        .mode(mode)
        .mark(mark)
        .set("source.polling.interval", "50ms")
        .kafka_property("compression.type", "zstd");
        assert_eq!(config.topic_of("order"), "accepted_1.order");
        let text = config.text();
        if let Err(errors) = Config::parse("outboxd.toml", &text, []) {
            panic!("{errors}\n{text}");
        }
    }
}

#[test]
fn a_faithful_log_is_clean() {
    let (truth, log) = faithful();
    let verdict = judge(&truth, &log);
    verdict.assert_clean(0);
    assert_eq!((verdict.committed, verdict.published), (20, 20));
}

#[test]
fn a_loss_is_found() {
    let (truth, mut log) = faithful();
    log.remove(7);
    let verdict = judge(&truth, &log);
    assert_eq!(verdict.lost.len(), 1);
    assert_eq!(
        judge(&truth, &log),
        Verdict {
            lost: verdict.lost.clone(),
            published: 19,
            committed: 20,
            ..Verdict::default()
        }
    );
}

#[test]
fn a_phantom_is_found() {
    let (mut truth, log) = faithful();
    truth.remove(3);
    assert_eq!(judge(&truth, &log).phantom.len(), 1);
}

#[test]
fn an_inversion_within_an_aggregate_is_found() {
    let (truth, mut log) = faithful();
    let aggregate = log[0].key.clone();
    let second = log
        .iter()
        .skip(1)
        .position(|read| read.key == aggregate)
        .unwrap()
        + 1;
    let (first_offset, second_offset) = (log[0].offset, log[second].offset);
    log[0].offset = second_offset;
    log[second].offset = first_offset;
    let verdict = judge(&truth, &log);
    assert_eq!(verdict.out_of_order.len(), 1);
    assert_eq!(
        verdict.lost.len() + verdict.wrong.len() + verdict.duplicates,
        0
    );
}

#[test]
fn a_duplicate_is_counted_and_does_not_count_as_an_inversion() {
    let (truth, mut log) = faithful();
    let again = Read {
        offset: 100,
        ..log[0].clone()
    };
    log.push(again);
    let verdict = judge(&truth, &log);
    assert_eq!(verdict.duplicates, 1);
    verdict.assert_clean(1);
}

#[test]
#[should_panic(expected = "at most 0 duplicates allowed")]
fn a_duplicate_beyond_the_bound_is_refused() {
    let (truth, mut log) = faithful();
    let again = Read {
        offset: 100,
        ..log[0].clone()
    };
    log.push(again);
    judge(&truth, &log).assert_clean(0);
}

#[test]
fn wrong_partition_key_value_and_header_are_found() {
    let (truth, mut log) = faithful();
    log[0].partition = (log[0].partition + 1) % 3;
    log[1].key = None;
    log[2].value = log[3].value.clone();
    log[4].value = Some(
        String::from_utf8(log[4].value.clone().unwrap())
            .unwrap()
            .replace("pad", "bad")
            .into_bytes(),
    );
    log[5].headers.clear();
    let verdict = judge(&truth, &log);
    assert_eq!(verdict.wrong.len(), 5, "{verdict}");
    assert_eq!(verdict.lost.len(), 1, "a record without an id is nobody's");
}

fn judge(truth: &[Truth], log: &[Read]) -> Verdict {
    Verdict::judge(truth, log, &HashMap::from([(TOPIC.to_owned(), 3)]))
}

/// Twenty rows of four aggregates, and the log that a faithful relay makes of them.
fn faithful() -> (Vec<Truth>, Vec<Read>) {
    let row = |number: i64| Truth {
        event_id: Uuid::from_u128(number as u128 + 1),
        aggregate: format!("order-{}", number % 4),
        version: number / 4 * 3,
    };
    let truth: Vec<Truth> = (0..20).map(row).collect();
    let read = |(number, row): (usize, &Truth)| Read {
        topic: TOPIC.to_owned(),
        partition: partition_of(row.aggregate.as_bytes(), 3),
        offset: number as i64,
        key: Some(row.aggregate.clone().into_bytes()),
        value: Some(payload(row, "pad").into_bytes()),
        headers: vec![("id".to_owned(), Some(row.event_id.to_string().into_bytes()))],
        timestamp_ms: Some(0),
    };
    let log = truth.iter().enumerate().map(read).collect();
    (truth, log)
}

fn outbox_of(payload_type: &str) -> String {
    format!(
        "CREATE TABLE outbox (
            id uuid NOT NULL, aggregatetype text NOT NULL, aggregateid text NOT NULL, type text NOT NULL,
            payload {payload_type}, seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)"
    )
}

fn record(topic: &str, id: u128, key: &str, value: &[u8]) -> Read {
    Read {
        topic: topic.to_owned(),
        partition: 0,
        offset: 0,
        key: Some(key.as_bytes().to_vec()),
        value: Some(value.to_vec()),
        headers: vec![(
            "id".to_owned(),
            Some(Uuid::from_u128(id).to_string().into_bytes()),
        )],
        timestamp_ms: None,
    }
}

/// Produces records as a Java client would, and waits for their delivery.
fn produce(kafka: &Kafka, records: &[Read]) {
    let mut settings = kafka.client();
    settings
        .set("partitioner", "murmur2_random")
        .set("enable.idempotence", "true");
    let producer: BaseProducer = settings.create().unwrap();
    for record in records {
        let headers = OwnedHeaders::new().insert(Header {
            key: "id",
            value: record.headers[0].1.as_deref(),
        });
        let (key, value) = (
            record.key.as_deref().unwrap(),
            record.value.as_deref().unwrap(),
        );
        let record = BaseRecord::to(&record.topic)
            .key(key)
            .payload(value)
            .headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(SOON).unwrap();
}
