//! One row of every bad kind, each in an aggregate of its own between good rows.

use std::fmt::Write as _;

use super::rig::{LENIENT, RSS_MAX, Rig, insert};
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::topic::Read;

/// What becomes of a row.
enum Fate {
    /// Its record has this; `None` for what is NULL.
    Key(Option<&'static str>),
    Value(Option<&'static str>),
    Header(&'static str, Option<&'static str>),
    Published,
    /// Its aggregate is blocked, and the reason names this column.
    Blocked(&'static str),
}

use Fate::{Blocked, Header, Key, Published, Value};

/// A column with an SQL value, set beside the usual ones.
type Case = (&'static str, &'static str, Fate);

const MANY_HEADERS: &str =
    "(SELECT json_object_agg('h' || n, 'x')::text FROM generate_series(1, 10000) n)";
const JUST_ENOUGH_HEADERS: &str =
    "(SELECT json_object_agg('h' || n, 'x')::text FROM generate_series(1, 999) n)";

const CASES: [Case; 50] = [
    ("partitionkey", "''", Key(Some(""))),
    ("partitionkey", r"E'\x01\n\x7f'", Key(Some("\u{1}\n\u{7f}"))),
    ("payload", "NULL", Value(None)),
    ("payload", "''", Value(Some(""))),
    ("payload", "'not json'", Value(Some("not json"))),
    (
        "payload",
        r"E'\x01\t\x1b[31m'",
        Value(Some("\u{1}\t\u{1b}[31m")),
    ),
    ("payload", "repeat('x', 900000)", Published),
    ("headers", "NULL", Published),
    ("headers", "'null'", Published),
    ("headers", "'{}'", Published),
    ("headers", r#"'{"a":"\u0000"}'"#, Header("a", Some("\0"))),
    ("headers", r#"'{"a":null}'"#, Header("a", None)),
    ("headers", r#"E'{"a":"\x7f"}'"#, Header("a", Some("\u{7f}"))),
    ("headers", JUST_ENOUGH_HEADERS, Header("h999", Some("x"))),
    ("topic", "''", Published),
    ("occurredat", "'infinity'", Header("when", Some("infinity"))),
    (
        "occurredat",
        "'-infinity'",
        Header("when", Some("-infinity")),
    ),
    (
        "occurredat",
        "'294276-12-31 23:59:59.999999+00'",
        Header("when", Some("294276-12-31 23:59:59.999999+00")),
    ),
    (
        "occurredat",
        "'4713-01-01 00:00:00+00 BC'",
        Header("when", Some("4713-01-01 00:00:00+00 BC")),
    ),
    ("id", "NULL", Blocked("id")),
    ("aggregateid", "NULL", Blocked("aggregateid")),
    ("aggregatetype", "NULL", Blocked("aggregatetype")),
    ("aggregatetype", "'../order'", Blocked("aggregatetype")),
    ("aggregatetype", "'a b'", Blocked("aggregatetype")),
    ("headers", "''", Blocked("headers")),
    ("headers", "'not json'", Blocked("headers")),
    ("headers", "'[1]'", Blocked("headers")),
    ("headers", "'{\"a\":1'", Blocked("headers")),
    ("headers", r#"'{"":"x"}'"#, Blocked("headers")),
    ("headers", r#"'{"a\u0000":"x"}'"#, Blocked("headers")),
    ("headers", r#"'{"a":"\ud800"}'"#, Blocked("headers")),
    ("headers", r#"'{"\udc00":"x"}'"#, Blocked("headers")),
    ("headers", r#"E'{"a":"\x01"}'"#, Blocked("headers")),
    ("headers", r#"'{"id":"x"}'"#, Blocked("headers")),
    ("headers", r#"'{"\u0069d":"x"}'"#, Blocked("headers")),
    (
        "headers",
        r#"'{"__TypeId__":"x"}'"#,
        Header("__TypeId__", Some("x")),
    ),
    ("headers", r#"'{"outboxd_x":"x"}'"#, Blocked("headers")),
    (
        "headers",
        "'{\"' || repeat('n', 300) || '\":1}'",
        Blocked("headers"),
    ),
    ("headers", MANY_HEADERS, Blocked("headers")),
    (
        "headers",
        "'{\"a\":\"' || repeat('x', 1500000) || '\"}'",
        Blocked("headers"),
    ),
    ("topic", "'../order'", Blocked("topic")),
    ("topic", "'__consumer_offsets'", Blocked("topic")),
    ("topic", "'__transaction_state'", Blocked("topic")),
    ("topic", "'payments'", Blocked("topic")),
    ("topic", "'.'", Blocked("topic")),
    ("topic", r"E'order\x01'", Blocked("topic")),
    ("topic", "repeat('t', 250)", Blocked("topic")),
    ("topic", "repeat('t', 1500000)", Blocked("topic")),
    (
        "partitionkey",
        "repeat('k', 1500000)",
        Blocked("partitionkey"),
    ),
    ("payload", "repeat('x', 1500000)", Blocked("payload")),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_published_as_documented_or_blocks_its_aggregate_with_the_column() {
    tokio::join!(
        judge(("replication", "ledger")),
        judge(("polling", "ledger"))
    );
}

async fn judge(pair: (&str, &str)) {
    let postgres = Postgres::shared(USUAL).await;
    let mut rig = Rig::new(postgres, pair, LENIENT, |config| {
        config
            .set("route.headers.occurredat", "when")
            .kafka_property("message.max.bytes", "1000000")
    })
    .await;
    let relay = Relay::start(&rig.config);
    // Once a row has come through, what follows comes through the stream.
    rig.pass("first").await;
    let mut script = String::new();
    for (number, (column, value, _)) in CASES.iter().enumerate() {
        let case = format!("case-{number}");
        script += &insert(&case, column, value);
        let follower = format!("follower-{number}");
        let follower = insert(&follower, "aggregateid", &format!("'{case}'"));
        let neighbour = insert(&format!("neighbour-{number}"), "type", "'placed'");
        let _ = write!(script, "{follower}{neighbour}");
    }
    rig.run(&script).await;
    let reads = rig.pass("last").await;
    let log = relay.log();
    for (number, case) in CASES.iter().enumerate() {
        check(number, case, &reads, &log);
    }
    let rss = relay.rss_bytes_max();
    assert!(rss <= RSS_MAX, "{pair:?}: {} MiB", rss >> 20);
}

fn check(number: usize, (column, value, fate): &Case, reads: &[Read], log: &str) {
    let case = format!("{column} = {value:.60}");
    let find = |name: &str| {
        let id = format!("{name}-{number}");
        let mut found = reads.iter().filter(|read| read.header("id") == Some(&id));
        let read = found.next();
        assert!(found.next().is_none(), "{case}: {id} came twice");
        read
    };
    assert!(
        find("neighbour").is_some(),
        "{case}: its neighbour is not published"
    );
    let record = find("case");
    if let Blocked(named) = fate {
        assert!(record.is_none(), "{case} was published: {record:?}");
        // Where the column is the aggregate's own, the row at fault has an aggregate of its own.
        let is_alone = matches!(*named, "aggregateid" | "aggregatetype");
        assert_eq!(find("follower").is_some(), is_alone, "{case}: follower");
        let id = if *named == "id" {
            String::new()
        } else {
            format!("case-{number}")
        };
        let is_told = |line: &&str| {
            line.contains("blocked") && line.contains(&id) && line.contains(&format!("`{named}`"))
        };
        assert!(
            log.lines().any(|line| is_told(&line)),
            "{case}: no reason in\n{log}"
        );
        return;
    }
    let record = record.unwrap_or_else(|| panic!("{case} was not published"));
    assert!(
        find("follower").is_some(),
        "{case}: its follower is not published"
    );
    match fate {
        Key(key) => assert_eq!(record.key_text(), *key, "{case}"),
        Value(value) => assert_eq!(record.value_text(), *value, "{case}"),
        Header(name, value) => {
            let header = record.headers.iter().find(|(header, _)| header == name);
            let found = header
                .unwrap_or_else(|| panic!("{case}: no header"))
                .1
                .as_deref();
            assert_eq!(found, value.map(str::as_bytes), "{case}");
        }
        Published | Blocked(_) => {}
    }
}
