//! Compares our records with captures of a running Debezium, byte for byte.

use base64::Engine as _;
use serde_json::Value;

use super::scene::{Pair, Scene, execute};
use crate::harness::topic::Read;

macro_rules! capture {
    ($name:ident, $file:literal) => {
        pub async fn $name(pair: Pair) {
            compare(pair, include_str!(concat!("../golden/", $file, ".json"))).await;
        }
    };
}

capture!(golden_default_jsonb, "default-jsonb");
capture!(golden_payload_json_text, "payload-json-text");
capture!(golden_payload_jsonb_normalised, "payload-jsonb-normalised");
capture!(golden_payload_text, "payload-text");
capture!(golden_payload_bytea, "payload-bytea");
capture!(golden_payload_null_default, "payload-null-default");
capture!(golden_payload_empty_default, "payload-empty-default");
capture!(golden_unicode_text, "unicode-text");
capture!(golden_key_null_and_empty, "key-null-and-empty");
capture!(
    golden_insert_and_delete_in_one_transaction,
    "op-insert-delete-same-tx"
);
capture!(golden_update_and_delete, "op-update-delete-default");

/// Our table has columns of ours beside Debezium's; the headers that Kafka Connect adds are its own.
async fn compare(pair: Pair, capture: &str) {
    let capture: Value = serde_json::from_str(capture).expect("a capture is JSON");
    let mut scene = Scene::own_table(pair).await;
    scene.config = scene.config.clone().set("route.null_key", "publish");
    for sql in texts(&capture["ddl"]) {
        execute(&scene.client, sql).await;
    }
    let ours = "ALTER TABLE outbox ADD seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, ADD sent_at timestamptz";
    execute(&scene.client, ours).await;
    scene.config.migrate();
    let expected = &capture["captures"][0];
    let partitions = expected["topics_partitions"]
        .as_object()
        .expect("the topics of a capture");
    for (topic, partitions) in partitions {
        let partitions = partitions.as_i64().expect("a number of partitions") as i32;
        scene
            .kafka
            .create_topic(&own_topic(&scene, topic), partitions, &[])
            .await;
    }
    let _relay = scene.start_steady().await;
    for transaction in capture["transactions"].as_array().expect("transactions") {
        execute(&scene.client, "BEGIN").await;
        for sql in texts(transaction) {
            execute(&scene.client, sql).await;
        }
        execute(&scene.client, "COMMIT").await;
    }
    let topics: Vec<String> = partitions
        .keys()
        .map(|topic| own_topic(&scene, topic))
        .collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let records = expected["records"].as_array().expect("records");
    let reads = scene
        .wait_for(&mut scene.kafka.reader(&topics), records.len())
        .await;
    assert_eq!(reads.len(), records.len(), "nothing else is published");
    for record in records {
        let id = id_of(record);
        let read = reads.iter().find(|read| read.header("id") == Some(&id));
        let read = read.unwrap_or_else(|| panic!("{id} was not published"));
        // Marks in `sent_at` are changes, too: then the stream brings none.
        let changed = match pair.mark {
            "sent_at" => None,
            _ => committed(&capture, &id),
        };
        let value = changed.or_else(|| bytes(&record["value"]));
        assert_eq!(read.value, value, "value");
        compare_record(&scene, read, record);
    }
    assert_order(&reads, records);
}

/// What a transaction made of the payload of a row that it had inserted: Debezium sends such a row as it was inserted,
/// outboxd as it was committed.
fn committed(capture: &Value, id: &str) -> Option<Vec<u8>> {
    let condition = format!("' WHERE id='{id}'");
    for transaction in capture["transactions"].as_array()? {
        let statements = texts(transaction);
        let is_inserted = |sql: &&str| sql.starts_with("INSERT") && sql.contains(id);
        if !statements.iter().any(is_inserted) {
            continue;
        }
        let payload = |sql: &&str| {
            let set = sql.strip_prefix("UPDATE outbox SET payload='")?;
            set.strip_suffix(&condition).map(str::to_owned)
        };
        if let Some(payload) = statements.iter().find_map(payload) {
            return Some(payload.replace(':', ": ").into_bytes());
        }
    }
    None
}

fn compare_record(scene: &Scene, read: &Read, record: &Value) {
    let topic = record["topic"].as_str().expect("a topic");
    assert_eq!(read.topic, own_topic(scene, topic));
    assert_eq!(read.key, bytes(&record["key"]), "key");
    let volatile = texts(&record["volatile"]);
    if !volatile.contains(&"partition") {
        assert_eq!(
            i64::from(read.partition),
            record["partition"].as_i64().expect("a partition")
        );
    }
    let headers = record["headers"].as_array().expect("headers").iter();
    let headers = headers.map(|header| {
        (
            header["name"].as_str().expect("a name").to_owned(),
            bytes(header),
        )
    });
    let own: Vec<_> = headers
        .filter(|(name, _)| !name.starts_with("__debezium.context."))
        .collect();
    assert_eq!(read.headers, own, "headers");
}

/// Records of one partition come in the order of the capture.
fn assert_order(reads: &[Read], records: &[Value]) {
    let place = |record: &Value| {
        let id = id_of(record);
        let read = reads.iter().find(|read| read.header("id") == Some(&id));
        read.map(|read| (read.topic.clone(), read.partition, read.offset))
            .expect("compared before")
    };
    let places: Vec<_> = records.iter().map(place).collect();
    for (index, (topic, partition, offset)) in places.iter().enumerate() {
        let before = places[..index]
            .iter()
            .filter(|(other, number, _)| other == topic && number == partition);
        assert!(before.into_iter().all(|(_, _, earlier)| earlier < offset));
    }
}

fn own_topic(scene: &Scene, topic: &str) -> String {
    scene
        .config
        .topic_of(topic.trim_start_matches("outbox.event."))
}

fn id_of(record: &Value) -> String {
    let headers = record["headers"].as_array().expect("headers");
    let id = headers
        .iter()
        .find(|header| header["name"] == "id")
        .expect("a header `id`");
    String::from_utf8(bytes(id).expect("a value")).expect("text")
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    if value["null"] == true {
        return None;
    }
    let text = value["base64"].as_str().expect("bytes in base64");
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    Some(decoded.expect("base64"))
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array()
        .expect("a list")
        .iter()
        .map(|text| text.as_str().expect("text"))
        .collect()
}
