use super::*;
use crate::postgres::catalog::tests::trusted;

fn source(mark: Mark) -> SourceConfig {
    let text = "[source]\nurl = \"postgres://u@h/d\"\n[kafka]\nbrokers = [\"k:9092\"]\n";
    let config = crate::config::Config::parse("o.toml", text, []);
    let mut source = config.expect("a configuration").source;
    source.mark = mark;
    source.replication.slot = "a".to_owned();
    source
}

fn before(mark: Mark) -> Before {
    Before {
        mark: Some(mark),
        mode: Some("replication".to_owned()),
        slot: Some("a".to_owned()),
        caught_up: true,
    }
}

fn questions(former: Mark, now: Mark) -> Vec<Question> {
    let conditions = conditions(former, &source(now), &before(former), &trusted());
    conditions.iter().map(|(question, _)| *question).collect()
}

#[test]
fn what_stood_in_the_table_may_not_change_its_meaning() {
    assert_eq!(
        questions(Mark::Ledger, Mark::Delete),
        [Question::SentByLedger]
    );
    assert_eq!(questions(Mark::SentAt, Mark::Delete), [Question::SentByRow]);
    assert_eq!(
        questions(Mark::Ledger, Mark::SentAt),
        [Question::SentByLedgerBehindTriggers]
    );
    for (former, now) in [
        (Mark::SentAt, Mark::Ledger),
        (Mark::Delete, Mark::Ledger),
        (Mark::Delete, Mark::SentAt),
    ] {
        assert_eq!(questions(former, now), []);
    }
}

#[test]
fn without_a_mark_only_an_empty_table_can_get_one() {
    for now in [Mark::Ledger, Mark::SentAt, Mark::Delete] {
        assert_eq!(questions(Mark::None, now), [Question::Held, Question::Rows]);
        assert_eq!(questions(now, Mark::None), [Question::Held]);
        let mut polled = before(now);
        polled.caught_up = false;
        let conditions = conditions(now, &source(Mark::None), &polled, &trusted());
        assert_eq!(conditions.len(), 2);
    }
}

#[test]
fn a_relay_without_marks_may_read_beside_one_that_marks() {
    let mut other = before(Mark::Ledger);
    assert!(!is_beside(&other, &source(Mark::None)));
    other.slot = Some("b".to_owned());
    assert!(is_beside(&other, &source(Mark::None)));
    assert!(!is_beside(&other, &source(Mark::SentAt)));
}
