use super::*;
use crate::row::columns::tests::mapped;

fn names(mode: Mode, mark: Mark) -> Names {
    Names {
        schema: "my schema".to_owned(),
        table: "o\"box".to_owned(),
        columns: Default::default(),
        mode,
        mark,
        removes: false,
        order_column: None,
        partition_rows: None,
        publication: "outboxd orders".to_owned(),
        slot: "outboxd_orders".to_owned(),
        failover: true,
        relay_role: None,
        application_role: Some("shop".to_owned()),
        lacking: Lacking::Refuse,
    }
}

const MARKS: [Mark; 4] = [Mark::Ledger, Mark::SentAt, Mark::Delete, Mark::None];

#[test]
fn every_word_in_braces_is_filled_in_for_every_mode_and_mark() {
    for mode in [Mode::Replication, Mode::Polling] {
        for mark in MARKS {
            for step in steps(&names(mode, mark), &ExistingObjects::default()).unwrap() {
                let left = step
                    .sql
                    .split('{')
                    .skip(1)
                    .find(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()));
                assert_eq!(left, None, "{}", step.sql);
                assert!(
                    step.sql.is_ascii() && step.description.is_ascii(),
                    "{}",
                    step.sql
                );
            }
        }
    }
}

#[test]
fn the_publication_comes_before_the_slot_and_polling_has_neither() {
    let parts = |mode| {
        let steps = steps(&names(mode, Mark::Ledger), &ExistingObjects::default()).unwrap();
        steps.iter().map(|step| step.part).collect::<Vec<Part>>()
    };
    let replication = parts(Mode::Replication);
    let at = |part| replication.iter().position(|one| *one == part);
    assert!(at(Part::Publication).unwrap() < at(Part::Slot).unwrap());
    let polling = parts(Mode::Polling);
    assert!(!polling.contains(&Part::Publication) && !polling.contains(&Part::Slot));
}

#[test]
fn only_the_mark_that_needs_it_gets_more_than_select() {
    let sql = |mark| {
        let steps = steps(&names(Mode::Polling, mark), &ExistingObjects::default()).unwrap();
        let sql: Vec<String> = steps.into_iter().map(|step| step.sql).collect();
        sql.join("\n")
    };
    assert!(
        !sql(Mark::Ledger).contains("GRANT UPDATE") && !sql(Mark::Ledger).contains("GRANT DELETE")
    );
    assert!(sql(Mark::SentAt).contains("GRANT UPDATE (sent_at)"));
    assert!(sql(Mark::Delete).contains("GRANT DELETE"));
    let mut names = names(Mode::Polling, Mark::Ledger);
    names.removes = true;
    let steps = steps(&names, &ExistingObjects::default()).unwrap();
    assert!(steps.iter().any(|step| step.sql.contains("GRANT DELETE")));
}

#[test]
fn a_table_with_columns_of_other_names_is_never_created() {
    for mark in MARKS {
        let mut names = names(Mode::Replication, mark);
        names.columns = mapped(&[("id", "event \"id\""), ("seq", "No"), ("sent_at", "Gone")]);
        let steps = steps(&names, &ExistingObjects::default()).unwrap();
        let is_ours = |step: &Step| matches!(step.part, Part::Table | Part::Function);
        assert!(!steps.iter().any(is_ours));
        let sql: Vec<String> = steps.into_iter().map(|step| step.sql).collect();
        let sql = sql.join("\n");
        assert!(sql.contains("o.\"event \"\"id\"\"\""), "{sql}");
        assert!(
            !sql.contains("o.seq") && !sql.contains("o.sent_at"),
            "{sql}"
        );
        let grants = sql.contains("GRANT UPDATE (\"Gone\")");
        assert_eq!(grants, mark == Mark::SentAt);
    }
}
