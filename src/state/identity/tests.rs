//! Each sentence of the rule on the identity of the numbers, as a fact.

use super::*;

fn stored() -> Identity {
    Identity {
        system_identifier: "7710623233773267313".to_owned(),
        timeline: 1,
        database: "shop".to_owned(),
        table_oid: 16_400,
        table_filenodes: vec![16_400, 16_401],
        sequence_filenode: Some(16_402),
    }
}

/// 90 is sent and the row is there; the sequence stands at 100 and so does the table.
fn healthy() -> Evidence {
    Evidence {
        tail: Some((90, RowAt::Same)),
        last_value: Some(100),
        highest_row: Some(100),
    }
}

fn judge(change: impl FnOnce(&mut Identity, &mut Evidence)) -> IdentityVerdict {
    let (mut now, mut evidence) = (stored(), healthy());
    change(&mut now, &mut evidence);
    compare(Mark::Ledger, &stored(), &now, &evidence)
}

#[track_caller]
fn assert_halts(verdict: &IdentityVerdict) {
    assert!(
        matches!(verdict, IdentityVerdict::Halt { .. }),
        "{verdict:?}"
    );
}

fn truncate_restart(now: &mut Identity, evidence: &mut Evidence) {
    now.table_filenodes = vec![20_000, 20_001];
    now.sequence_filenode = Some(20_002);
    *evidence = Evidence {
        tail: Some((90, RowAt::Gone)),
        last_value: Some(5),
        highest_row: Some(5),
    };
}

/// Numbers that an application draws in pools: the sequence counts the pools.
#[test]
fn only_the_ledger_rests_on_the_sequence() {
    let (now, mut evidence) = (stored(), healthy());
    evidence.highest_row = Some(101);
    for (mark, is_same) in [
        (Mark::Ledger, false),
        (Mark::SentAt, true),
        (Mark::Delete, true),
        (Mark::None, true),
    ] {
        let verdict = compare(mark, &stored(), &now, &evidence);
        assert_eq!(verdict == IdentityVerdict::Same, is_same, "{mark:?}");
    }
}

#[test]
fn another_place_is_another_one_for_every_mark() {
    let mut now = stored();
    now.database = "another".to_owned();
    for mark in [Mark::Ledger, Mark::SentAt, Mark::Delete, Mark::None] {
        assert_halts(&compare(mark, &stored(), &now, &healthy()));
    }
}

#[test]
fn nothing_changed_is_the_same() {
    assert_eq!(judge(|_, _| ()), IdentityVerdict::Same);
}

#[test]
fn a_truncate_with_restart_identity_begins_a_new_generation() {
    assert!(matches!(
        judge(truncate_restart),
        IdentityVerdict::NewGeneration { .. }
    ));
}

#[test]
fn a_truncate_that_continues_the_identity_is_the_same() {
    let verdict = judge(|now, evidence| {
        now.table_filenodes = vec![20_000, 20_001];
        evidence.tail = Some((90, RowAt::Gone));
        evidence.highest_row = None;
    });
    assert_eq!(verdict, IdentityVerdict::Same);
}

#[test]
fn a_sequence_set_back_alone_halts_even_when_the_row_is_gone() {
    let verdict = judge(|now, evidence| {
        now.sequence_filenode = Some(20_002);
        *evidence = Evidence {
            tail: Some((90, RowAt::Gone)),
            last_value: Some(5),
            highest_row: Some(5),
        };
    });
    assert_halts(&verdict);
}

#[test]
fn a_lower_last_value_halts() {
    assert_halts(&judge(|_, evidence| {
        evidence.last_value = Some(89);
        evidence.highest_row = Some(80);
    }));
}

#[test]
fn another_id_at_the_last_number_halts_unless_table_and_sequence_have_new_files() {
    assert_halts(&judge(|_, evidence| {
        evidence.tail = Some((90, RowAt::Other))
    }));
    let refilled = judge(|now, evidence| {
        truncate_restart(now, evidence);
        evidence.tail = Some((90, RowAt::Other));
        (evidence.last_value, evidence.highest_row) = (Some(200), Some(200));
    });
    assert!(
        matches!(refilled, IdentityVerdict::NewGeneration { .. }),
        "{refilled:?}"
    );
    assert_halts(&judge(|now, evidence| {
        now.table_filenodes = vec![20_000];
        evidence.tail = Some((90, RowAt::Other));
    }));
}

#[test]
fn an_older_timeline_than_the_recorded_one_halts() {
    assert_halts(&judge(|now, _| now.timeline = 0));
}

#[test]
fn a_server_that_has_less_than_it_had_is_noticed() {
    let seen = ServerHistory {
        system_identifier: "1".to_owned(),
        timeline: 2,
        flushed: Lsn(10 << 20),
    };
    let judge = |change: fn(&mut ServerHistory)| {
        let mut now = seen.clone();
        change(&mut now);
        seen.judge(&now)
    };
    assert_eq!(judge(|now| now.flushed.0 += 1), History::Continues);
    assert_eq!(judge(|now| now.flushed.0 -= 1_000), History::Continues);
    assert_eq!(
        judge(|now| now.flushed.0 = 9 << 20),
        History::Rewound { bytes: 1 << 20 }
    );
    assert_eq!(judge(|now| now.timeline = 1), History::Rewound { bytes: 0 });
    let promoted = judge(|now| (now.timeline, now.flushed.0) = (3, 9 << 20));
    assert_eq!(
        promoted,
        History::Promoted {
            lacks_bytes: 1 << 20
        }
    );
    let other = judge(|now| (now.system_identifier, now.flushed.0) = ("2".to_owned(), 0));
    assert_eq!(other, History::Continues);
}

#[test]
fn another_system_database_or_table_halts() {
    assert_halts(&judge(|now, _| now.system_identifier = "1".to_owned()));
    assert_halts(&judge(|now, _| now.database = "clone".to_owned()));
    assert_halts(&judge(|now, _| now.table_oid = 1));
}

#[test]
fn a_sequence_that_cannot_be_read_halts() {
    assert_halts(&judge(|_, evidence| evidence.last_value = None));
}

#[test]
fn a_row_above_the_last_value_halts_before_a_new_generation_begins() {
    assert_halts(&judge(|_, evidence| evidence.highest_row = Some(101)));
    let restarted = judge(|now, evidence| {
        truncate_restart(now, evidence);
        evidence.highest_row = Some(6);
    });
    assert_halts(&restarted);
}

#[test]
fn a_failover_a_rewritten_table_or_another_partition_is_the_same() {
    assert_eq!(judge(|now, _| now.timeline = 2), IdentityVerdict::Same);
    assert_eq!(
        judge(|now, _| now.table_filenodes = vec![1, 2]),
        IdentityVerdict::Same
    );
    assert_eq!(
        judge(|now, _| now.table_filenodes.push(30_000)),
        IdentityVerdict::Same
    );
}

#[test]
fn rows_removed_by_retention_are_the_same() {
    let verdict = judge(|_, evidence| evidence.tail = Some((90, RowAt::Gone)));
    assert_eq!(verdict, IdentityVerdict::Same);
}

#[test]
fn without_a_ledger_only_the_place_and_the_sequence_are_judged() {
    assert_eq!(
        judge(|_, evidence| evidence.tail = None),
        IdentityVerdict::Same
    );
    let without_seq = judge(|now, evidence| {
        now.sequence_filenode = None;
        evidence.last_value = None;
    });
    assert_eq!(without_seq, IdentityVerdict::Same);
}
