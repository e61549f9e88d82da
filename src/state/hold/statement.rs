//! The one statement that records what is blocked and what is kept whole: all of it, or nothing.

use tokio_postgres::types::ToSql;

use super::entry::{HoldEntry, KeptRow, What};
use super::{ENTRY_KEY, kept_key};
use crate::core::Followers;
use crate::mark::FencingToken;
use crate::mark::ledger::LEASE;
use crate::row::Layout;

type Texts<'a> = Vec<Option<&'a str>>;

/// Takes the fencing token, the generation, then the parameters of [`KeptColumns`] and [`EntryColumns`]; says who holds the lease.
pub(super) fn sql() -> String {
    format!(
        "WITH {LEASE}, kept AS ({}), blocked AS ({}) SELECT count(*) FROM lease",
        keep(),
        block()
    )
}

fn keep() -> String {
    let key = kept_key("$3::int4", "r.seq", "r.row_id");
    format!(
        "INSERT INTO outboxd.kept AS k (outbox, key, blocked_key, state, generation, seq, row_id, \
           aggregatetype, aggregateid, columns, fields, left_out, reason, error, epoch) \
         SELECT $1, {key}, CASE WHEN r.kind IS NOT NULL THEN {ENTRY_KEY} END, r.state, $3, r.seq, r.row_id, \
           r.row_type, r.row_aggregate, $4::text[], \
           ($5::bytea[])[(r.ordinal - 1) * cardinality($4::text[]) + 1 : r.ordinal * cardinality($4::text[])], \
           r.left_out::jsonb, r.reason, r.error, $2 \
         FROM lease, unnest($6::text[], $7::int8[], $8::text[], $9::text[], $10::text[], $11::text[], \
           $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[]) WITH ORDINALITY \
         AS r (state, seq, row_id, kind, aggregatetype, aggregateid, topic, reason, error, row_type, \
           row_aggregate, left_out, ordinal) ORDER BY r.ordinal \
         ON CONFLICT (outbox, key) DO UPDATE SET state = excluded.state, blocked_key = excluded.blocked_key, \
           reason = excluded.reason, error = excluded.error, attempts = k.attempts + 1, \
           at = clock_timestamp(), epoch = excluded.epoch \
         WHERE k.state IN ('replay', 'replayed')"
    )
}

fn block() -> String {
    // An entry that was released begins anew; another one keeps its first row.
    let renewed = ["row_seq", "row_id", "reason", "error", "policy"].map(|column| {
        format!(
            "{column} = CASE b.state WHEN 'released' THEN excluded.{column} ELSE b.{column} END"
        )
    });
    let renewed = renewed.join(", ");
    format!(
        "INSERT INTO outboxd.blocked AS b (outbox, key, kind, aggregatetype, aggregateid, topic, generation, \
           held, row_seq, row_id, reason, error, policy, epoch) \
         SELECT $1, {ENTRY_KEY}, r.kind, r.aggregatetype, r.aggregateid, r.topic, $3, \
           r.held::int8multirange, r.row_seq, r.row_id, r.reason, r.error, r.policy, $2 \
         FROM lease, unnest($18::text[], $19::text[], $20::text[], $21::text[], $22::text[], $23::int8[], \
           $24::text[], $25::text[], $26::text[], $27::text[]) \
         AS r (kind, aggregatetype, aggregateid, topic, held, row_seq, row_id, reason, error, policy) \
         ON CONFLICT (outbox, key) DO UPDATE SET \
           held = CASE WHEN b.generation = excluded.generation THEN b.held + excluded.held \
             ELSE excluded.held END, \
           generation = excluded.generation, \
           {renewed}, \
           since = CASE b.state WHEN 'released' THEN clock_timestamp() ELSE b.since END, \
           attempts = b.attempts + (b.state = 'released')::int4, \
           state = CASE b.state WHEN 'released' THEN 'blocked' ELSE b.state END, \
           at = clock_timestamp(), epoch = excluded.epoch"
    )
}

/// The parameters of a statement, in order.
pub(super) fn parameters<'a>(
    token: &'a FencingToken,
    generation: &'a i32,
    kept: &'a KeptColumns<'a>,
    entries: &'a EntryColumns<'a>,
) -> Vec<&'a (dyn ToSql + Sync)> {
    let (k, e) = (kept, entries);
    vec![
        &token.outbox,
        &token.epoch,
        generation,
        &k.columns,
        &k.fields,
        &k.states,
        &k.seqs,
        &k.row_ids,
        &k.behind.kinds,
        &k.behind.types,
        &k.behind.ids,
        &k.behind.topics,
        &k.reasons,
        &k.errors,
        &k.row_types,
        &k.row_aggregates,
        &k.left_out,
        &e.what.kinds,
        &e.what.types,
        &e.what.ids,
        &e.what.topics,
        &e.held,
        &e.row_seqs,
        &e.row_ids,
        &e.reasons,
        &e.errors,
        &e.policies,
    ]
}

/// What rows wait behind, by column.
struct WhatColumns<'a> {
    kinds: Texts<'a>,
    types: Texts<'a>,
    ids: Texts<'a>,
    topics: Texts<'a>,
}

impl<'a> WhatColumns<'a> {
    fn of(whats: &[Option<&'a What>]) -> Self {
        let column = |text: fn(&What) -> Option<&str>| -> Texts<'a> {
            whats.iter().map(|what| what.and_then(text)).collect()
        };
        Self {
            kinds: column(|what| Some(what.kind())),
            types: column(What::aggregate_type),
            ids: column(What::aggregate_id),
            topics: column(What::topic),
        }
    }
}

/// The rows to be kept whole, by column.
pub(super) struct KeptColumns<'a> {
    columns: Vec<&'a str>,
    fields: Vec<Option<&'a [u8]>>,
    states: Vec<&'static str>,
    seqs: Vec<Option<i64>>,
    row_ids: Vec<String>,
    behind: WhatColumns<'a>,
    reasons: Vec<&'a str>,
    errors: Vec<&'a str>,
    row_types: Texts<'a>,
    row_aggregates: Texts<'a>,
    left_out: Vec<Option<String>>,
}

impl<'a> KeptColumns<'a> {
    pub(super) fn of(kept: &[&'a KeptRow], layout: &'a Layout) -> Self {
        let columns = layout.columns.iter().map(|column| column.name.as_str());
        let columns: Vec<_> = columns.collect();
        let fields = kept
            .iter()
            .flat_map(|kept| (0..columns.len()).map(|column| kept.row.field(column)));
        let fields = fields.collect();
        // A field is text in UTF-8, for that is the client's encoding.
        let text = |column: usize| -> Texts<'a> {
            let fields = kept.iter().map(|kept| kept.row.field(column));
            fields
                .map(|field| std::str::from_utf8(field?).ok())
                .collect()
        };
        let (seqs, row_ids) = kept.iter().map(|kept| kept.key()).unzip();
        let behind: Vec<_> = kept.iter().map(|kept| kept.behind.as_ref()).collect();
        let state = |kept: &&KeptRow| if kept.is_dead { "dead" } else { "held" };
        Self {
            columns,
            fields,
            states: kept.iter().map(state).collect(),
            seqs,
            row_ids,
            behind: WhatColumns::of(&behind),
            reasons: kept.iter().map(|kept| kept.reason.as_str()).collect(),
            errors: kept.iter().map(|kept| kept.error.as_str()).collect(),
            row_types: text(layout.aggregate_type),
            row_aggregates: text(layout.aggregate_id),
            left_out: kept.iter().map(|kept| kept.left_out(layout)).collect(),
        }
    }
}

/// The entries that hold rows, by column.
pub(super) struct EntryColumns<'a> {
    what: WhatColumns<'a>,
    held: Vec<String>,
    row_seqs: Vec<Option<i64>>,
    row_ids: Vec<&'a str>,
    reasons: Vec<&'a str>,
    errors: Vec<&'a str>,
    policies: Vec<&'static str>,
}

impl<'a> EntryColumns<'a> {
    pub(super) fn of(entries: &'a [HoldEntry]) -> Self {
        let what: Vec<_> = entries.iter().map(|entry| Some(&entry.what)).collect();
        let held = entries.iter().map(|entry| entry.held.to_multirange_text());
        let policy = |entry: &HoldEntry| match entry.followers {
            Followers::Wait => "block",
            Followers::Die => "follow",
        };
        Self {
            what: WhatColumns::of(&what),
            held: held.collect(),
            row_seqs: entries.iter().map(|entry| entry.row_seq).collect(),
            row_ids: entries.iter().map(|entry| entry.row_id.as_str()).collect(),
            reasons: entries.iter().map(|entry| entry.reason.as_str()).collect(),
            errors: entries.iter().map(|entry| entry.error.as_str()).collect(),
            policies: entries.iter().map(policy).collect(),
        }
    }
}
