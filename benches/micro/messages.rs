//! What the output plugin sends for an outbox as `outboxd migrate` creates it, in rows of about 250 B.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use outboxd::postgres::catalog::{ReplicaIdentity, Table, TableKind};
use outboxd::row::{Column, Layout, Lsn, OutboxRow};
use outboxd::source::replication::pgoutput::{Change, Decoder, Described};

const OUTBOX_OID: u32 = 70_000;
/// Between two commits; more than a row takes.
const LSN_STEP: u64 = 0x200;

/// Its columns, with what a row says in them.
const COLUMNS: [(&str, &str, Option<&str>); 16] = [
    ("id", "uuid", Some("")),
    ("aggregatetype", "character varying(255)", Some("order")),
    ("aggregateid", "character varying(255)", Some("")),
    ("type", "character varying(255)", Some("OrderPlaced")),
    ("payload", "json", Some("")),
    ("headers", "jsonb", None),
    ("topic", "character varying(249)", None),
    ("partitionkey", "text", None),
    ("aggregateversion", "bigint", None),
    ("correlationid", "text", None),
    ("causationid", "text", None),
    ("traceparent", "text", None),
    ("tracestate", "text", None),
    ("occurredat", "timestamp with time zone", None),
    ("seq", "bigint", Some("")),
    (
        "created_at",
        "timestamp with time zone",
        Some("2026-01-01 00:00:00.123456+00"),
    ),
];

pub fn outbox() -> Described {
    let columns = COLUMNS.map(|(name, type_name, _)| Column::new(name, type_name));
    let layout = Layout::find("public", "outbox", columns.to_vec());
    Described {
        layout: Arc::new(layout.expect("every mandatory column")),
        needed: Vec::new(),
        oid: OUTBOX_OID,
        read_at: Lsn(0),
        kind: TableKind::Ordinary,
    }
}

/// The same as the catalog has it.
pub fn table() -> Table {
    let outbox = outbox();
    Table {
        oid: outbox.oid,
        read_at: outbox.read_at,
        shape: String::new(),
        layout: Layout::clone(&outbox.layout),
        kind: TableKind::Ordinary,
        owner: "postgres".into(),
        column_xids: Vec::new(),
        leaves: Vec::new(),
        before_insert_triggers: Vec::new(),
        subscriptions: Vec::new(),
        row_security: false,
        update_rules: Vec::new(),
        delete_rules: Vec::new(),
        is_born_sent: false,
        id_is_unique: true,
        replica_identity: ReplicaIdentity::Full,
        has_primary_key: true,
        unpublishable: Vec::new(),
        seq: None,
    }
}

/// Where the transaction of a row commits.
pub fn commit_lsn(seq: u64) -> u64 {
    seq * LSN_STEP
}

/// The description of the table, which comes once, inside the first transaction.
pub fn relation() -> BytesMut {
    let mut message = BytesMut::from(&b"R"[..]);
    message.put_u32(OUTBOX_OID);
    message.put_slice(b"public\0outbox\0d");
    message.put_u16(COLUMNS.len() as u16);
    for (name, _, _) in COLUMNS {
        message.put_u8(0);
        message.put_slice(name.as_bytes());
        message.put_u8(0);
        // The oid of `text`, and no type modifier.
        message.put_u32(25);
        message.put_u32(u32::MAX);
    }
    message
}

/// A transaction of one row: Begin, Insert, Commit.
pub fn transaction(seq: u64) -> [BytesMut; 3] {
    let mut begin = BytesMut::from(&b"B"[..]);
    begin.put_u64(commit_lsn(seq));
    begin.put_u64(seq);
    begin.put_u32(seq as u32);
    let mut commit = BytesMut::from(&b"C\0"[..]);
    commit.put_u64(commit_lsn(seq));
    commit.put_u64(commit_lsn(seq) + 0x30);
    commit.put_u64(seq);
    [begin, insert(seq), commit]
}

fn insert(seq: u64) -> BytesMut {
    let mut message = BytesMut::from(&b"I"[..]);
    message.put_u32(OUTBOX_OID);
    message.put_u8(b'N');
    message.put_u16(COLUMNS.len() as u16);
    for (name, _, value) in COLUMNS {
        let Some(value) = value else {
            message.put_u8(b'n');
            continue;
        };
        let value = match name {
            "id" => format!("00000000-0000-4000-8000-{seq:012x}"),
            "aggregateid" => format!("o-{}", seq % 10_000),
            "payload" => format!(r#"{{"version": {seq}, "note": "{}"}}"#, "x".repeat(120)),
            "seq" => seq.to_string(),
            _ => value.to_owned(),
        };
        message.put_u8(b't');
        message.put_u32(value.len() as u32);
        message.put_slice(value.as_bytes());
    }
    message
}

/// A decoder that knows the table.
pub fn decoder() -> Decoder {
    let mut decoder = Decoder::new(outbox());
    let decoded = decoder.decode(relation());
    decoded.expect("the description fits the catalog");
    decoder
}

/// Rows as the stream brings them.
pub fn rows(count: u64) -> Vec<OutboxRow> {
    let mut decoder = decoder();
    let mut rows = Vec::new();
    for message in (1..=count).flat_map(transaction) {
        let change = decoder.decode(message);
        if let Change::Row(row) = change.expect("the message is whole") {
            rows.push(row);
        }
    }
    rows
}
