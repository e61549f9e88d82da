//! Which `source.columns` would fit a table that names its columns in another way: by names and types. Pure.

use std::fmt::Write;

use super::attribute::{Attribute, Wanted};
use crate::row::columns::{ColumnNames, OURS, is_mandatory};

/// How other tables call what outboxd reads, the likeliest first, in small letters and digits alone: those of open-outbox,
/// Eventuate, goharvest, Inviqa, tomorrow-one, eventferry, Dekaf, Marten, Axon and of hand-written ones.
const SPELLINGS: [(&str, Wanted, &[&str]); 15] = [
    (
        "id",
        Wanted::Word,
        &[
            "eventid",
            "messageid",
            "outboxid",
            "eventuuid",
            "uuid",
            "guid",
            "eventidentifier",
            "recordid",
        ],
    ),
    (
        "aggregatetype",
        Wanted::Word,
        &[
            "aggregate",
            "aggregatename",
            "entitytype",
            "streamtype",
            "entity",
            "resourcetype",
            "kafkatopic",
            "topic",
            "destination",
            "topicname",
        ],
    ),
    (
        "aggregateid",
        Wanted::Word,
        &[
            "entityid",
            "streamid",
            "aggregateidentifier",
            "resourceid",
            "aggregatekey",
            "partitionkey",
            "kafkakey",
            "messagekey",
            "eventkey",
            "key",
        ],
    ),
    (
        "type",
        Wanted::Word,
        &[
            "eventtype",
            "messagetype",
            "eventname",
            "typename",
            "payloadtype",
            "name",
            "kind",
        ],
    ),
    (
        "payload",
        Wanted::Payload,
        &[
            "data",
            "body",
            "eventdata",
            "payloadjson",
            "payloadbody",
            "eventbody",
            "eventpayload",
            "messagebody",
            "message",
            "content",
            "kafkavalue",
            "value",
            "json",
        ],
    ),
    (
        "headers",
        Wanted::Json,
        &[
            "metadata",
            "eventheaders",
            "messageheaders",
            "payloadheaders",
            "meta",
        ],
    ),
    (
        "topic",
        Wanted::Word,
        &["topicname", "kafkatopic", "destination"],
    ),
    (
        "partitionkey",
        Wanted::Word,
        &["routingkey", "shardkey", "kafkakey"],
    ),
    ("correlationid", Wanted::Word, &[]),
    ("causationid", Wanted::Word, &[]),
    ("traceparent", Wanted::Word, &[]),
    ("tracestate", Wanted::Word, &[]),
    (
        "seq",
        Wanted::Number,
        &[
            "sequence",
            "sequencenumber",
            "sequenceid",
            "seqno",
            "seqid",
            "eventnumber",
            "position",
            "globalposition",
            "globalsequence",
            "offset",
            "rowid",
            "pk",
            "id",
        ],
    ),
    (
        "created_at",
        Wanted::Instant,
        &[
            "created",
            "createdon",
            "creationtime",
            "createtime",
            "insertedat",
            "occurredat",
            "occurredon",
            "timestamp",
            "eventtime",
        ],
    ),
    ("sent_at", Wanted::Instant, &[]),
];

/// The mapping as TOML, ready to paste; a mandatory column that nothing looks like stands behind `#`.
///
/// `sent_at` is never guessed: it would say of rows that they were sent.
pub(super) fn mapping(attributes: &[Attribute], names: &ColumnNames) -> String {
    let chosen = choose(attributes, names);
    let mut text = String::from("[source.columns]");
    for ours in OURS {
        let own = attributes.iter().any(|one| one.name == ours);
        match chosen.iter().find(|(one, _)| *one == ours) {
            Some((_, name)) if *name == ours => {}
            Some((_, name)) => {
                let name = toml_edit::Value::from(*name);
                write!(text, "\n{ours} = {}", name.to_string().trim())
                    .expect("a String takes every text");
            }
            None if is_mandatory(ours) && !own => {
                write!(text, "\n#{ours} = \"...\" # no column looks like it")
                    .expect("a String takes every text");
            }
            None => {}
        }
    }
    text
}

/// What is mapped already, then columns of our very name, then the likeliest ones; no column twice.
fn choose<'a>(attributes: &'a [Attribute], names: &'a ColumnNames) -> Vec<(&'static str, &'a str)> {
    let has = |name: &str| attributes.iter().any(|one| one.name == name);
    let mut chosen: Vec<(&'static str, &'a str)> = Vec::new();
    for ours in OURS {
        let theirs = names.of(ours);
        if theirs != ours && has(theirs) {
            chosen.push((ours, theirs));
        }
    }
    // A number beside an id of its own counts the rows.
    let counts = |one: &&Attribute| one.name == "id" && one.is_counter();
    let counter = attributes.iter().find(counts).filter(|_| {
        !has("seq")
            && likeliest(SPELLINGS[0].1, SPELLINGS[0].2, attributes, &chosen)
                .is_some_and(|one| one.type_name == "uuid")
    });
    for (ours, wanted, spellings) in SPELLINGS {
        if chosen.iter().any(|(one, _)| *one == ours) || ours == "sent_at" {
            continue;
        }
        let is_free = |one: &&Attribute| chosen.iter().all(|(_, name)| *name != one.name);
        let own = attributes.iter().find(|one| one.name == ours);
        let own = own.filter(|one| is_free(one) && !(ours == "id" && counter.is_some()));
        let spelt = attributes
            .iter()
            .find(|one| spelling(&one.name) == spelling(ours) && wanted.takes(&one.type_name));
        let spelt = spelt.filter(|one| is_free(one) && (ours != "id" || one.name != "id"));
        let found = own
            .or(spelt)
            .or_else(|| likeliest(wanted, spellings, attributes, &chosen));
        if let Some(found) = found.filter(|one| ours != "seq" || one.is_counter()) {
            chosen.push((ours, &found.name));
        }
    }
    chosen
}

fn likeliest<'a>(
    wanted: Wanted,
    spellings: &[&str],
    attributes: &'a [Attribute],
    chosen: &[(&'static str, &str)],
) -> Option<&'a Attribute> {
    let is_free = |one: &&Attribute| chosen.iter().all(|(_, name)| *name != one.name);
    spellings.iter().find_map(|known| {
        let fits = |one: &&Attribute| spelling(&one.name) == *known && wanted.takes(&one.type_name);
        attributes.iter().filter(is_free).find(fits)
    })
}

/// A name without what people spell in different ways.
fn spelling(name: &str) -> String {
    let known = name.chars().filter(|c| c.is_alphanumeric());
    known.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::columns::tests::mapped;

    fn table(columns: &[(&str, &str)]) -> Vec<Attribute> {
        let attribute = |(name, type_name): &(&str, &str)| {
            let (type_name, identity) = match type_name.strip_suffix(" identity") {
                Some(type_name) => (type_name, "a"),
                None => (*type_name, ""),
            };
            Attribute {
                name: (*name).to_owned(),
                type_name: type_name.to_owned(),
                identity: identity.to_owned(),
                ..Attribute::default()
            }
        };
        columns.iter().map(attribute).collect()
    }

    fn of(columns: &[(&str, &str)]) -> String {
        mapping(&table(columns), &ColumnNames::default())
    }

    #[test]
    fn words_that_are_spelt_apart_are_known() {
        assert_eq!(
            of(&[
                ("event_id", "uuid"),
                ("aggregate_type", "text"),
                ("aggregateId", "character varying(255)"),
                ("event_type", "text"),
                ("body", "jsonb"),
                ("correlation_id", "text"),
                ("occurred_at", "timestamp with time zone"),
                ("Sequence Number", "bigint identity"),
                ("processed_at", "timestamp with time zone"),
            ]),
            "[source.columns]\nid = \"event_id\"\naggregatetype = \"aggregate_type\"\naggregateid = \"aggregateId\"\n\
             type = \"event_type\"\npayload = \"body\"\ncorrelationid = \"correlation_id\"\n\
             seq = \"Sequence Number\"\ncreated_at = \"occurred_at\""
        );
    }

    #[test]
    fn a_number_beside_a_uuid_counts_the_rows() {
        assert_eq!(
            of(&[
                ("id", "bigint identity"),
                ("message_id", "uuid"),
                ("topic", "text"),
                ("key", "text"),
                ("value", "bytea"),
                ("created", "timestamp with time zone"),
            ]),
            "[source.columns]\nid = \"message_id\"\naggregatetype = \"topic\"\naggregateid = \"key\"\npayload = \"value\"\n\
             seq = \"id\"\ncreated_at = \"created\""
        );
    }

    #[test]
    fn a_type_that_cannot_be_used_is_not_proposed() {
        assert_eq!(
            of(&[
                ("id", "uuid"),
                ("aggregate_type", "text"),
                ("aggregate_id", "text"),
                ("data", "xml"),
                ("sequence", "bigint"),
            ]),
            "[source.columns]\naggregatetype = \"aggregate_type\"\naggregateid = \"aggregate_id\"\n\
             #payload = \"...\" # no column looks like it"
        );
    }

    #[test]
    fn what_is_mapped_stays_and_a_name_is_written_as_toml_has_it() {
        let columns = table(&[
            ("a \"b\"", "uuid"),
            ("kind", "text"),
            ("entity_id", "text"),
            ("payload", "json"),
        ]);
        let names = mapped(&[("id", "a \"b\""), ("aggregatetype", "kind")]);
        let text = mapping(&columns, &names);
        let parsed: toml_edit::Document<String> = toml_edit::Document::parse(text).unwrap();
        let columns = &parsed["source"]["columns"];
        assert_eq!(columns["id"].as_str(), Some("a \"b\""));
        assert_eq!(columns["aggregatetype"].as_str(), Some("kind"));
        assert_eq!(columns["aggregateid"].as_str(), Some("entity_id"));
        assert!(columns.get("payload").is_none());
    }
}
