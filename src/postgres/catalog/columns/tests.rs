use super::*;
use crate::row::columns::tests::mapped;

fn attributes(columns: &[(&str, &str)]) -> Vec<Attribute> {
    let attribute = |(name, type_name): &(&str, &str)| Attribute {
        name: (*name).to_owned(),
        type_name: (*type_name).to_owned(),
        ..Attribute::default()
    };
    columns.iter().map(attribute).collect()
}

const FIVE: [(&str, &str); 5] = [
    ("id", "uuid"),
    ("aggregatetype", "character varying(255)"),
    ("aggregateid", "character varying(255)"),
    ("type", "character varying(255)"),
    ("payload", "jsonb"),
];

#[test]
fn debeziums_five_columns_are_enough() {
    let layout = layout(
        "public",
        "outbox",
        &attributes(&FIVE),
        &ColumnNames::default(),
    )
    .unwrap();
    assert_eq!((layout.id, layout.payload), (0, 4));
    assert_eq!(
        (layout.seq, layout.sent_at, layout.headers),
        (None, None, None)
    );
}

#[test]
fn a_missing_column_is_named_with_those_there_are() {
    let error = layout(
        "public",
        "outbox",
        &attributes(&[("id", "uuid"), ("Payload", "json")]),
        &ColumnNames::default(),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "table `public.outbox` has no column `aggregatetype`, `aggregateid`, `payload`; its columns are `id`, `Payload`"
    );
}

#[test]
fn a_mapped_column_is_found_by_the_tables_name() {
    let mut columns = attributes(&FIVE);
    columns[0].name = "event \"id\"".to_owned();
    columns[4].name = "тело".to_owned();
    let names = mapped(&[("id", "event \"id\""), ("payload", "тело")]);
    let layout = layout("public", "outbox", &columns, &names).unwrap();
    assert_eq!((layout.id, layout.payload), (0, 4));
    assert_eq!((layout.ours("id"), layout.column("id")), (Some(0), None));
    assert_eq!(layout.named("тело"), Some(4));
}

#[test]
fn a_mapped_column_that_is_not_there_is_named_with_its_line() {
    let names = mapped(&[("id", "ID"), ("aggregateid", "nope")]);
    let error = layout("public", "outbox", &attributes(&FIVE), &names);
    let text = error.unwrap_err().to_string();
    assert!(
        text.starts_with(
            "table `public.outbox` lacks what is mapped: o.toml:2: `source.columns.aggregateid` names `nope`, \
             o.toml:1: `source.columns.id` names `ID` (did you mean \"id\"?); its columns are `id`, "
        ),
        "{text}"
    );
}

#[test]
fn a_column_stands_for_one_name_alone() {
    let names = mapped(&[("aggregateid", "id")]);
    let error = layout("public", "outbox", &attributes(&FIVE), &names).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has no column `id` besides the one that `source.columns.aggregateid` names"),
        "{error}"
    );
}

#[test]
fn a_wrong_type_comes_with_the_statement_that_changes_it() {
    let mut columns = FIVE.to_vec();
    columns.push(("seq", "text"));
    let error = layout(
        "public",
        "out\"box",
        &attributes(&columns),
        &ColumnNames::default(),
    )
    .unwrap_err();
    let InspectError::WrongTypes { wrong, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(
        wrong[0].remedy,
        "ALTER TABLE \"public\".\"out\"\"box\" ALTER COLUMN \"seq\" TYPE bigint USING \"seq\"::bigint;"
    );
    assert!(error.to_string().ends_with("`seq` is text, wanted bigint"));
}

#[test]
fn a_payload_may_be_json_text_or_bytes_and_nothing_else() {
    for type_name in ["jsonb", "json", "text", "character varying(10)", "bytea"] {
        assert!(Wanted::Payload.takes(type_name), "{type_name}");
    }
    for type_name in ["xml", "integer", "json[]", "oid"] {
        assert!(!Wanted::Payload.takes(type_name), "{type_name}");
    }
}

fn typed(type_name: &str) -> Column {
    Column {
        name: "c".to_owned(),
        type_name: type_name.to_owned(),
        is_bytea: type_name == "bytea",
    }
}

#[test]
fn the_select_list_keeps_bytes_and_prints_all_else_as_pgoutput_does() {
    let texts = ["uuid", "character(8)", "text", "bytea"].map(|name| select_column(&typed(name)));
    assert_eq!(
        texts,
        [
            "o.\"c\"::text",
            "CASE WHEN o.\"c\" IS DISTINCT FROM NULL THEN pg_catalog.format('%s', o.\"c\") END",
            "o.\"c\"::text",
            "o.\"c\""
        ]
    );
}

#[test]
fn every_value_that_may_be_large_is_measured_before_it_is_read() {
    let short = [
        "uuid",
        "bigint",
        "timestamp with time zone",
        "character varying(255)",
    ];
    for type_name in short {
        assert_eq!(size(&typed(type_name), 1_000_000), None, "{type_name}");
    }
    for type_name in [
        "text",
        "bytea",
        "character varying",
        "character varying(1000000)",
    ] {
        let size = size(&typed(type_name), 1_000_000).unwrap();
        assert_eq!(size, "pg_catalog.octet_length(o.\"c\")", "{type_name}");
    }
    for type_name in ["json", "jsonb", "xml", "numeric", "text[]", "public.mood"] {
        let size = size(&typed(type_name), 1_000_000).unwrap();
        assert!(size.contains("pg_column_size"), "{type_name}");
    }
}

#[test]
fn a_measured_column_comes_with_its_size() {
    let layout = layout(
        "public",
        "outbox",
        &attributes(&FIVE),
        &ColumnNames::default(),
    )
    .unwrap();
    let selection = select_columns(&layout, 1_000);
    assert_eq!(selection.measured, [1, 2, 3, 4]);
    let last = "size.c1, size.c2, size.c3, size.c4";
    assert!(selection.columns.ends_with(last), "{}", selection.columns);
}
