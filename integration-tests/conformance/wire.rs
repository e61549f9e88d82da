//! What a row becomes: payload bytes, key, headers and topic.

use futures_util::future::join_all;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::scene::{Pair, SOON, Scene, execute, has, retry_all, stop};
use crate::harness::relay::Relay;
use crate::harness::topic::Read;
use crate::harness::wait_until;

/// Values as SQL, one table for each type.
const PAYLOADS: [(&str, &[&str]); 4] = [
    (
        "bytea",
        &[
            "'\\x'",
            "'\\x00'",
            "'\\x00ff10807fc328'",
            "convert_to('\\x41', 'UTF8')",
            "convert_to('grün 🦀', 'UTF8')",
            "decode(repeat('00fe5c27', 5000), 'hex')",
            "NULL",
        ],
    ),
    (
        "json",
        &[
            r#"'{ "b" : 1,  "a":[1.50, 1e3, null] , "b":2}'"#,
            r#"'"grün 🦀 \u00fc \\ \" "'"#,
            "'{}'",
            "' 1 '",
            "'null'",
            "NULL",
        ],
    ),
    (
        "text",
        &[
            "''",
            "' '",
            "'null'",
            r"'\x41'",
            r"'\N'",
            r"E'a\tb\nc\rd\\e\'f\001'",
            "'grün 🦀 漢字 \u{202e}'",
            "repeat('é', 5000)",
            "NULL",
        ],
    ),
    (
        "jsonb",
        &[
            r#"'{ "b" : 1,  "a":[1.50, 1e3, null] , "b":2}'"#,
            r#"'"grün 🦀 \u00fc \\ \" "'"#,
            "'[]'",
            "'null'",
            "NULL",
        ],
    ),
];

/// The expectation is what PostgreSQL itself says the bytes are; a NULL payload is a tombstone.
pub async fn every_payload_type_keeps_its_bytes(pair: Pair) {
    let scene = Scene::own_table(pair).await;
    let cases = PAYLOADS
        .iter()
        .map(|(payload_type, values)| payload_case(&scene, payload_type, values));
    join_all(cases).await;
}

async fn payload_case(scene: &Scene, payload_type: &str, values: &[&str]) {
    let table = format!("{payload_type}_outbox");
    scene.create_table(&table, payload_type).await;
    let (slot, topic) = (
        format!("{}_{payload_type}", scene.database.name),
        format!("{}.{payload_type}", scene.database.name),
    );
    let config = scene
        .config
        .clone()
        .table(&format!("public.{table}"))
        .set("source.replication.slot", slot.as_str())
        .set("source.replication.publication", slot.as_str())
        .topic(&topic);
    scene.create_topic(&topic, &[]).await;
    config.migrate();
    let relay = Relay::start(&config);
    let bytes = match payload_type {
        "bytea" => "payload",
        _ => "convert_to(payload::text, 'UTF8')",
    };
    let mut expected = Vec::new();
    for value in values {
        let id = Uuid::new_v4();
        let sql = format!(
            "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload)
             VALUES ($1, 'order', '1', 'Changed', {value}) RETURNING {bytes}"
        );
        let row = scene
            .client
            .query_one(&sql, &[&id])
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        expected.push((id, row.get::<_, Option<Vec<u8>>>(0)));
    }
    let reads = scene
        .wait_for(&mut scene.kafka.reader(&[&topic]), values.len())
        .await;
    let published: Vec<_> = reads
        .iter()
        .map(|read| (id_of(read), read.value.clone()))
        .collect();
    assert_eq!(published, expected, "{payload_type}");
    drop(relay);
}

fn id_of(read: &Read) -> Uuid {
    read.header("id")
        .and_then(|id| Uuid::try_parse(id).ok())
        .expect("a header `id`")
}

pub async fn columns_become_headers_topic_and_key(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    scene.config = scene.config.clone().set("route.headers.type", "eventType");
    let other = format!("{}.other", scene.database.name);
    scene.create_topic(&other, &[]).await;
    let _relay = scene.start();
    let rows: [(&str, &str); 3] = [
        ("", ""),
        (
            "headers, correlationid, causationid, traceparent, tracestate",
            r#"'{"zone": "é\n\"1\"", "count": 1.50, "deep": {"a": [1]}, "none": null, "empty": ""}', 'c1', 'c2', '00-1-2-01', ''"#,
        ),
        ("topic, partitionkey", &format!("'{other}', 'grün'")),
    ];
    let mut ids = Vec::new();
    for (columns, values) in rows {
        ids.push(publish(&scene, columns, values).await);
    }
    let mut reader = scene.kafka.reader(&[&scene.topic(), &other]);
    let reads = scene.wait_for(&mut reader, rows.len()).await;
    let find = |id: Uuid| {
        reads
            .iter()
            .find(|read| id_of(read) == id)
            .expect("a record of the row")
    };
    let [plain, headers, routed] = [find(ids[0]), find(ids[1]), find(ids[2])];
    assert_eq!(
        plain.headers,
        with_id(ids[0], &[("eventType", Some("Changed"))])
    );
    assert_eq!(
        (plain.topic.as_str(), plain.key_text()),
        (scene.topic().as_str(), Some("order-1"))
    );
    // jsonb sorts its keys by length, then by bytes.
    let expected = [
        ("deep", Some(r#"{"a": [1]}"#)),
        ("none", None),
        ("zone", Some("é\n\"1\"")),
        ("count", Some("1.50")),
        ("empty", Some("")),
        ("correlationid", Some("c1")),
        ("causationid", Some("c2")),
        ("traceparent", Some("00-1-2-01")),
        ("tracestate", Some("")),
        ("eventType", Some("Changed")),
    ];
    assert_eq!(headers.headers, with_id(ids[1], &expected));
    assert_eq!(
        (routed.topic.as_str(), routed.key_text()),
        (other.as_str(), Some("grün"))
    );
    let partition =
        crate::harness::murmur2::partition_of("grün".as_bytes(), super::scene::PARTITIONS);
    assert_eq!(routed.partition, partition);
}

/// Inserts a row with further columns, by the names and values given.
async fn publish(scene: &Scene, columns: &str, values: &str) -> Uuid {
    let id = Uuid::new_v4();
    let (columns, values) = match columns {
        "" => (String::new(), String::new()),
        _ => (format!(", {columns}"), format!(", {values}")),
    };
    let sql = format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload{columns})
         VALUES ($1, 'order', 'order-1', 'Changed', '{{}}'{values})"
    );
    let parameters: [&(dyn ToSql + Sync); 1] = [&id];
    let done = scene.client.execute(&sql, &parameters).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    id
}

fn with_id(id: Uuid, headers: &[(&str, Option<&str>)]) -> Vec<(String, Option<Vec<u8>>)> {
    let id = id.to_string();
    let all = std::iter::once(("id", Some(id.as_str()))).chain(headers.iter().copied());
    all.map(|(name, value)| {
        (
            name.to_owned(),
            value.map(|value| value.as_bytes().to_vec()),
        )
    })
    .collect()
}

pub async fn a_null_key_is_held_or_published(pair: Pair) {
    let mut scene = Scene::own_table(pair).await;
    scene.create_table("outbox", "json").await;
    scene.config.migrate();
    let mut relay = scene.start_steady().await;
    let mut reader = scene.reader();
    let [unkeyed, keyed] = [Uuid::new_v4(), Uuid::new_v4()];
    let sql = format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
         VALUES ('{unkeyed}', 'order', NULL, 'Changed', '1'), ('{keyed}', 'order', 'order-1', 'Changed', '2')"
    );
    execute(&scene.client, &sql).await;
    scene.wait_for_row(&mut reader, keyed).await;
    wait_until("the row is shown as held", SOON, async || {
        let status = relay.try_status()?;
        if status["held"][0]["event_id"] == unkeyed.to_string() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    assert!(!has(reader.read_to_end(), unkeyed));
    stop(&mut relay);
    scene.config = scene.config.clone().set("route.null_key", "publish");
    retry_all(&scene);
    let mut relay = scene.start();
    scene.wait_for_row(&mut reader, unkeyed).await;
    scene.wait_until_marked().await;
    scene.wait_until_confirmed().await;
    stop(&mut relay);
    let reads = reader.read_to_end();
    assert_eq!(reads.len(), 2, "{reads:?}");
    let read = reads
        .iter()
        .find(|read| id_of(read) == unkeyed)
        .expect("the row's record");
    assert_eq!((read.key.as_deref(), read.value_text()), (None, Some("1")));
}
