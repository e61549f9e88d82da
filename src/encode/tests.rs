//! Rows in, records out.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::config::is_reserved;
use crate::row::{Column, Field, Lsn};

const NAMES: [&str; 10] = [
    "id",
    "aggregatetype",
    "aggregateid",
    "type",
    "payload",
    "headers",
    "topic",
    "partitionkey",
    "traceparent",
    "tenant",
];
const UUID: &str = "10711fa5-0000-4000-8000-000000000001";

fn layout() -> Layout {
    let columns = NAMES.map(|name| Column::new(name, "text")).to_vec();
    Layout::find("public", "outbox", columns).unwrap()
}

fn route() -> RouteConfig {
    RouteConfig {
        topic: "outbox.event.${aggregatetype}".into(),
        allow: vec!["outbox.event.*".into()],
        null_key: NullKey::Block,
        headers: BTreeMap::new(),
    }
}

fn encoder(route: &RouteConfig) -> Encoder {
    Encoder::new(route, &layout(), 1_000_000).unwrap()
}

/// A row with these columns, every other one NULL.
fn row(values: &[(&str, &str)]) -> OutboxRow {
    let mut bytes = Vec::new();
    let mut fields = vec![Field::null(); NAMES.len()];
    for (name, value) in values {
        let column = NAMES.iter().position(|known| known == name).unwrap();
        fields[column] = Field {
            start: u32::try_from(bytes.len()).unwrap(),
            len: u32::try_from(value.len()).unwrap(),
        };
        bytes.extend_from_slice(value.as_bytes());
    }
    OutboxRow::new(&layout(), Lsn(1), bytes.into(), fields.into())
}

fn order(more: &[(&str, &str)]) -> OutboxRow {
    let mut values = vec![
        ("id", UUID),
        ("aggregatetype", "User"),
        ("aggregateid", "7"),
    ];
    values.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    values.extend_from_slice(more);
    row(&values)
}

fn headers_of(record: &Record) -> Vec<(String, Option<String>)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let pair = |header: &Header| (header.name.to_string(), header.value.as_ref().map(text));
    record.headers.iter().map(pair).collect()
}

fn reason(route: &RouteConfig, row: &OutboxRow) -> RejectionReason {
    encoder(route).encode(row).unwrap_err().reason
}

#[test]
fn with_the_defaults_a_row_becomes_what_debezium_would_send() {
    let record = encoder(&route())
        .encode(&order(&[("payload", "{}")]))
        .unwrap();
    assert_eq!(&*record.topic, "outbox.event.User");
    assert_eq!(record.key.as_deref(), Some(&b"7"[..]));
    assert_eq!(record.value.as_deref(), Some(&b"{}"[..]));
    assert_eq!(headers_of(&record), [("id".into(), Some(UUID.into()))]);
}

#[test]
fn a_null_payload_is_a_tombstone_and_an_empty_one_is_not() {
    let encoder = encoder(&route());
    assert_eq!(encoder.encode(&order(&[])).unwrap().value, None);
    let empty = encoder.encode(&order(&[("payload", "")])).unwrap();
    assert_eq!(empty.value, Some(Bytes::new()));
}

#[test]
fn the_rows_own_topic_wins_unless_it_is_empty() {
    let encoder = encoder(&route());
    let own = encoder
        .encode(&order(&[("topic", "outbox.event.x")]))
        .unwrap();
    assert_eq!(&*own.topic, "outbox.event.x");
    let empty = encoder.encode(&order(&[("topic", "")])).unwrap();
    assert_eq!(&*empty.topic, "outbox.event.User");
}

#[test]
fn topics_of_one_name_share_one_text() {
    let encoder = encoder(&route());
    let first = encoder.encode(&order(&[])).unwrap().topic;
    assert!(Arc::ptr_eq(
        &first,
        &encoder.encode(&order(&[])).unwrap().topic
    ));
}

#[test]
fn a_topic_that_kafka_or_the_route_refuses_is_refused() {
    let mut open = route();
    open.allow = vec!["*".into()];
    let long = "x".repeat(250);
    for topic in [
        ".",
        "..",
        "__consumer_offsets",
        "a b",
        "a/b",
        "ä",
        long.as_str(),
    ] {
        let row = order(&[("topic", topic)]);
        assert_eq!(reason(&open, &row), RejectionReason::TopicInvalid);
    }
    let other = order(&[("topic", "payments")]);
    assert_eq!(reason(&route(), &other), RejectionReason::TopicNotAllowed);
    let rejection = encoder(&route()).encode(&other).unwrap_err();
    assert!(!rejection.text.contains("payments"));
    let untyped = row(&[("id", UUID), ("aggregateid", "7")]);
    assert_eq!(reason(&open, &untyped), RejectionReason::TopicInvalid);
}

#[test]
fn the_key_is_the_partition_key_else_the_aggregate_id() {
    let encoder = encoder(&route());
    let own = encoder.encode(&order(&[("partitionkey", "p")])).unwrap();
    assert_eq!(own.key.as_deref(), Some(&b"p"[..]));
    let empty = encoder.encode(&order(&[("aggregateid", "")])).unwrap();
    assert_eq!(empty.key, Some(Bytes::new()));
}

#[test]
fn a_null_aggregate_id_is_refused_or_published_without_a_key() {
    let keyless = row(&[("id", UUID), ("aggregatetype", "User")]);
    assert_eq!(reason(&route(), &keyless), RejectionReason::NullKey);
    let mut publish = route();
    publish.null_key = NullKey::Publish;
    assert_eq!(encoder(&publish).encode(&keyless).unwrap().key, None);
}

#[test]
fn a_null_id_is_refused() {
    let nameless = row(&[("aggregatetype", "User"), ("aggregateid", "7")]);
    assert_eq!(reason(&route(), &nameless), RejectionReason::NullId);
}

#[test]
fn headers_come_in_their_fixed_order_with_json_kept_as_text() {
    let mut route = route();
    route.headers.insert("tenant".into(), "x-tenant".into());
    let object = r#"{"z":"a\"b","a":1.50,"t":true,"n":null,"o":{"k": [1]},"s\u0031":""}"#;
    let row = order(&[
        ("headers", object),
        ("traceparent", "00-x"),
        ("tenant", "acme"),
    ]);
    let record = encoder(&route).encode(&row).unwrap();
    let expected = [
        ("id", Some(UUID)),
        ("z", Some("a\"b")),
        ("a", Some("1.50")),
        ("t", Some("true")),
        ("n", None),
        ("o", Some(r#"{"k": [1]}"#)),
        ("s1", Some("")),
        ("traceparent", Some("00-x")),
        ("x-tenant", Some("acme")),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    assert_eq!(headers_of(&record), expected);
}

#[test]
fn headers_that_are_no_object_or_have_bad_names_are_refused() {
    let long = format!(r#"{{"{}":""}}"#, "n".repeat(256));
    let many: Vec<String> = (0..1_000).map(|n| format!(r#""h{n}":"""#)).collect();
    let many = format!("{{{}}}", many.join(","));
    for object in [
        "[]",
        "7",
        "{",
        "",
        "nul",
        r#"{"a":"\ud800"}"#,
        r#"{"\udc00":"x"}"#,
        r#"{"":"x"}"#,
        r#"{"a\u0000":"x"}"#,
        &long,
        &many,
    ] {
        let row = order(&[("headers", object)]);
        assert_eq!(
            reason(&route(), &row),
            RejectionReason::HeadersInvalid,
            "{object:.20}"
        );
    }
}

#[test]
fn json_null_in_the_headers_column_is_no_headers() {
    for object in ["null", " null\n", "{}"] {
        let record = encoder(&route())
            .encode(&order(&[("headers", object)]))
            .unwrap();
        assert_eq!(headers_of(&record).len(), 1, "{object}");
    }
}

#[test]
fn escapes_in_header_values_become_the_characters_they_stand_for() {
    let object = r#"{"nul":"a\u0000b","tab":"\t","pair":"\ud83d\ude00"}"#;
    let record = encoder(&route())
        .encode(&order(&[("headers", object)]))
        .unwrap();
    let values: Vec<_> = headers_of(&record)
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    let expected = [UUID, "a\0b", "\t", "\u{1F600}"];
    assert_eq!(values, expected.map(|value| Some(value.to_owned())));
}

#[test]
fn a_rejection_names_the_column_at_fault_and_shows_nothing_of_it() {
    let secret = "hunter2 ";
    let object = format!(r#"{{"id":"{secret}"}}"#);
    let cases = [
        (order(&[("topic", secret)]), "`topic`"),
        (order(&[("aggregatetype", secret)]), "`aggregatetype`"),
        (order(&[("headers", secret)]), "`headers`"),
        (order(&[("headers", &object)]), "`headers`"),
        (order(&[("payload", &secret.repeat(200_000))]), "`payload`"),
        (
            row(&[("aggregateid", secret), ("aggregatetype", "User")]),
            "`id`",
        ),
        (
            row(&[("id", secret), ("aggregatetype", "User")]),
            "`aggregateid`",
        ),
        (
            row(&[("id", secret), ("aggregateid", "7")]),
            "`aggregatetype`",
        ),
    ];
    for (row, column) in cases {
        let text = encoder(&route()).encode(&row).unwrap_err().text;
        assert!(text.contains(column), "{column} is not in: {text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_value_that_was_left_out_is_named_if_the_record_needs_it() {
    let needed = [
        "id",
        "aggregateid",
        "payload",
        "headers",
        "topic",
        "partitionkey",
        "traceparent",
    ];
    let leave_out = |name: &str, field: Field| {
        let mut fields = vec![Field::null(); NAMES.len()];
        let bytes = Bytes::from_static(b"User");
        fields[1..3].fill(Field { start: 0, len: 4 });
        fields[0] = fields[1];
        fields[NAMES.iter().position(|known| *known == name).unwrap()] = field;
        OutboxRow::new(&layout(), Lsn(1), bytes, fields.into())
    };
    for name in needed {
        let large = leave_out(name, Field::too_large(1_234_567));
        let rejection = encoder(&route()).encode(&large).unwrap_err();
        assert_eq!(rejection.reason, RejectionReason::TooLarge);
        let expected = format!("the column `{name}` has 1234567 bytes");
        assert!(rejection.text.contains(&expected), "{rejection}");
        let gone = leave_out(name, Field::no_column());
        let rejection = encoder(&route()).encode(&gone).unwrap_err();
        assert_eq!(rejection.reason, RejectionReason::NoColumn);
        assert!(rejection.text.contains(&format!("`{name}`")), "{rejection}");
    }
    for name in ["type", "tenant"] {
        let row = leave_out(name, Field::too_large(1_234_567));
        assert!(encoder(&route()).encode(&row).is_ok(), "{name} is not used");
    }
}

#[test]
fn a_reserved_header_is_refused_in_rows_and_in_the_route() {
    for name in ["id", "outboxd_x", "\\u0069d"] {
        let object = format!(r#"{{"{name}":"x"}}"#);
        let row = order(&[("headers", &object)]);
        assert_eq!(reason(&route(), &row), RejectionReason::HeaderReserved);
    }
    let mut route = route();
    route.headers.insert("tenant".into(), "id".into());
    assert!(matches!(
        Encoder::new(&route, &layout(), 1).unwrap_err(),
        EncodeError::Header { .. }
    ));
}

/// Spring Kafka's consumers choose a class by it.
#[test]
fn a_header_that_others_rely_on_goes_through() {
    let mut route = route();
    route
        .headers
        .insert("tenant".into(), "__Key_TypeId__".into());
    let values = [
        ("headers", r#"{"__TypeId__":"shop.Order"}"#),
        ("tenant", "k"),
    ];
    let record = encoder(&route).encode(&order(&values)).unwrap();
    let value = |name: &str| {
        let header = record.headers.iter().find(|header| &*header.name == name);
        header.and_then(|header| header.value.clone())
    };
    assert_eq!(value("__TypeId__").as_deref(), Some(&b"shop.Order"[..]));
    assert_eq!(value("__Key_TypeId__").as_deref(), Some(&b"k"[..]));
}

#[test]
fn a_record_above_the_limit_is_refused_with_its_size() {
    let encoder = Encoder::new(&route(), &layout(), 100).unwrap();
    let rejection = encoder
        .encode(&order(&[("payload", &"x".repeat(200))]))
        .unwrap_err();
    assert_eq!(rejection.reason, RejectionReason::TooLarge);
    assert!(rejection.text.contains("239 bytes"), "{rejection}");
}

#[test]
fn an_unknown_column_of_the_route_is_named_with_those_there_are() {
    let mut route = route();
    route.topic = "x.${aggregate_type}".into();
    let error = Encoder::new(&route, &layout(), 1).unwrap_err().to_string();
    assert!(
        error.contains("`aggregate_type`") && error.contains("`aggregatetype`"),
        "{error}"
    );
    for template in ["x.${aggregatetype", "a b", "$x"] {
        route.topic = template.into();
        let error = Encoder::new(&route, &layout(), 1).unwrap_err();
        assert!(matches!(error, EncodeError::Template { .. }), "{template}");
    }
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z.]{0,12}",
        "(outbox\\.event\\.|__)?[a-zA-Z./ *]{0,8}",
        any::<String>()
    ]
}

proptest! {
    #[test]
    fn no_row_leaves_the_allow_list_or_sets_a_reserved_header(
        kind in texts(),
        topic in proptest::option::of(texts()),
        names in proptest::collection::vec(prop_oneof![texts(), "(id|outboxd_)[a-z]{0,3}"], 0..5),
    ) {
        let object: BTreeMap<_, _> = names.iter().map(|name| (name, "x")).collect();
        let object = serde_json::to_string(&object).unwrap();
        let mut values = vec![("aggregatetype", kind.as_str()), ("headers", object.as_str())];
        values.extend(topic.as_deref().map(|topic| ("topic", topic)));
        if let Ok(record) = encoder(&route()).encode(&order(&values)) {
            prop_assert!(record.topic.starts_with("outbox.event."));
            prop_assert!(record.topic.len() <= 249);
            prop_assert!(record.topic.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
            prop_assert_eq!(&*record.headers[0].name, "id");
            for header in &record.headers[1..] {
                let name = &*header.name;
                prop_assert!(!is_reserved(name));
            }
        }
    }

    #[test]
    fn key_value_and_id_reach_the_record_untouched(key in any::<String>(), payload in any::<String>()) {
        let row = order(&[("aggregateid", &key), ("payload", &payload)]);
        let record = encoder(&route()).encode(&row).unwrap();
        prop_assert_eq!(record.key.as_deref(), Some(key.as_bytes()));
        prop_assert_eq!(record.value.as_deref(), Some(payload.as_bytes()));
        prop_assert_eq!(record.headers[0].value.as_deref(), Some(UUID.as_bytes()));
    }

    #[test]
    fn any_row_is_encoded_within_the_rules_or_refused_with_a_reason(
        fields in proptest::collection::vec(any_field(), NAMES.len()),
        null_key in prop_oneof![Just(NullKey::Block), Just(NullKey::Publish)],
        allow in prop_oneof![Just("outbox.event.*"), Just("*")],
    ) {
        let mut route = route();
        (route.null_key, route.allow) = (null_key, vec![allow.to_owned()]);
        route.headers.insert("tenant".into(), "x-tenant".into());
        let row = any_row(&fields);
        match encoder(&route).encode(&row) {
            Ok(record) => {
                let topic = &*record.topic;
                prop_assert!(allow == "*" || topic.starts_with("outbox.event."));
                prop_assert!(!topic.starts_with("__") && topic != "." && topic != "..");
                prop_assert!(!topic.is_empty() && topic.len() <= 249);
                prop_assert!(topic.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
                prop_assert_eq!(&*record.headers[0].name, "id");
                prop_assert!(record.headers[1..].iter().all(|header| !is_reserved(&header.name)));
                prop_assert!(record.size() <= 1_000_000 && record.headers.len() <= 1_000);
                prop_assert!(null_key == NullKey::Publish || record.key.is_some());
            }
            Err(rejection) => prop_assert!(rejection.text.contains('`'), "{}", rejection),
        }
    }
}

/// What a database, or a stream of bytes that claims to be one, may hold in a column.
#[derive(Clone, Debug)]
enum AnyField {
    Bytes(Vec<u8>),
    Null,
    TooLarge,
    NoColumn,
}

fn any_field() -> impl Strategy<Value = AnyField> {
    let headers = proptest::collection::vec((texts(), json()), 0..4).prop_map(|entries| {
        let entries = entries
            .into_iter()
            .map(|(name, value)| format!("{name:?}:{value}"));
        format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
    });
    prop_oneof![
        4 => texts().prop_map(|text| AnyField::Bytes(text.into_bytes())),
        2 => headers.prop_map(|text| AnyField::Bytes(text.into_bytes())),
        2 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(AnyField::Bytes),
        2 => Just(AnyField::Null),
        1 => Just(AnyField::TooLarge),
        1 => Just(AnyField::NoColumn),
    ]
}

fn json() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        Just(r#""\ud800""#.to_owned()),
        Just(r#""\u0000""#.to_owned()),
        Just(r#"{"a":[1e999]}"#.to_owned()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        texts(),
    ]
}

fn any_row(values: &[AnyField]) -> OutboxRow {
    let (mut bytes, mut fields) = (Vec::new(), Vec::new());
    for value in values {
        fields.push(match value {
            AnyField::Bytes(value) => {
                let start = u32::try_from(bytes.len()).unwrap();
                bytes.extend_from_slice(value);
                let len = u32::try_from(value.len()).unwrap();
                Field { start, len }
            }
            AnyField::Null => Field::null(),
            AnyField::TooLarge => Field::too_large(u64::MAX),
            AnyField::NoColumn => Field::no_column(),
        });
    }
    OutboxRow::new(&layout(), Lsn(1), bytes.into(), fields.into())
}
