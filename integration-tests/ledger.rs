//! The ledger in its tables: the sentences of docs/design.md, "The ledger", that a server must keep, each on real PostgreSQL.

pub mod outbox;

use outboxd::config::Mark;
use outboxd::core::Delivered;
use outboxd::mark::ledger::{SEGMENT_ROWS, compact, numbers_of, segment_of};
use outboxd::mark::{MarkError, Marks};
use outboxd::row::ranges::RangeSet;
use outboxd::state::SkippedBy;

use crate::harness::postgres::{MAJORS, USUAL};
use outbox::{Outbox, delivered, streamed, token};

const OUTBOX: &str = "public.outbox";
/// What a row of the table needs besides its number.
const ROWS: &str = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
                    SELECT 'order', 'a', 'placed', '{}' FROM generate_series(1, $1::int8)";

#[tokio::test(flavor = "multi_thread")]
async fn compaction_keeps_the_union_the_largest_high_lsn_and_the_last_row_of_each_segment() {
    for major in MAJORS {
        let outbox = Outbox::create(major, "ledger").await;
        let far = SEGMENT_ROWS + 5;
        let rows = [
            delivered(1, 30),
            delivered(2, 10),
            delivered(4, 20),
            delivered(far, 5),
        ];
        for row in &rows {
            outbox.mark(std::slice::from_ref(row)).await.unwrap();
        }
        assert_eq!(outbox.ledger_rows().await, 4);
        compact(&outbox.client, &token(1)).await.unwrap();
        let folded = "SELECT segment, sent::text, high_lsn::text, last_seq, last_id FROM outboxd.ledger ORDER BY 1";
        let folded = outbox.client.query(folded, &[]).await.unwrap();
        assert_eq!(folded.len(), 2, "PostgreSQL {major}");
        assert_eq!(folded[0].get::<_, &str>(1), "{[1,3),[4,5)}");
        assert_eq!(folded[0].get::<_, &str>(2), "0/1E");
        assert_eq!(folded[0].get::<_, i64>(3), 4);
        assert_eq!(folded[0].get::<_, String>(4), rows[2].id.to_string());
        assert_eq!(folded[1].get::<_, i64>(0), 1);
        let before = outbox.sent().await;
        compact(&outbox.client, &token(1)).await.unwrap();
        assert_eq!(outbox.sent().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_keeps_the_generations_apart() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    for seq in [1, 2] {
        outbox.mark(&[delivered(seq, 10)]).await.unwrap();
    }
    outbox.states().begin_generation(1).await.unwrap();
    for seq in [1, 5] {
        outbox.mark(&[delivered(seq, 90)]).await.unwrap();
    }
    compact(&outbox.client, &token(1)).await.unwrap();
    let sql =
        "SELECT generation, sent::text, high_lsn::text FROM outboxd.ledger ORDER BY generation";
    let rows = outbox.client.query(sql, &[]).await.unwrap();
    let found: Vec<(i32, &str, &str)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(found, [(1, "{[1,3)}", "0/A"), (2, "{[1,2),[5,6)}", "0/5A")]);
}

/// The second waits for the first one's row locks, and then finds that the rows it wanted are gone.
#[tokio::test(flavor = "multi_thread")]
async fn two_compactors_at_once_neither_lose_nor_repeat_a_number() {
    for major in [14, USUAL] {
        let outbox = Outbox::create(major, "ledger").await;
        for seq in 1..=20 {
            outbox.mark(&[delivered(seq * 2, 10)]).await.unwrap();
        }
        let before = outbox.sent().await;
        let other = outbox.database.client().await;
        outbox.client.batch_execute("BEGIN").await.unwrap();
        compact(&outbox.client, &token(1)).await.unwrap();
        let second = tokio::spawn(async move {
            compact(&other, &token(1)).await.unwrap();
        });
        outbox.wait_for_a_lock().await;
        // A checkpoint between the two is nobody's to fold.
        let third = outbox.database.client().await;
        outbox.mark_on(&third, &[delivered(99, 50)]).await.unwrap();
        outbox.client.batch_execute("COMMIT").await.unwrap();
        second.await.unwrap();
        let mut expected = before;
        expected.insert(99);
        assert_eq!(outbox.sent().await, expected);
        let total: i64 = outbox
            .one("SELECT sum(upper(r) - lower(r))::int8 FROM outboxd.ledger, unnest(sent) r")
            .await;
        assert_eq!(total, 21, "a number stands in two rows");
    }
}

/// It waits for the lease's row while somebody takes the lease, and must look at it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_compactor_that_is_deposed_while_it_waits_changes_nothing() {
    for major in [14, USUAL] {
        let outbox = Outbox::create(major, "ledger").await;
        for seq in 1..=3 {
            outbox.mark(&[delivered(seq, 10)]).await.unwrap();
        }
        let taker = outbox.database.client().await;
        taker
            .batch_execute("BEGIN; UPDATE outboxd.lease SET epoch = 2, owner = 'taker'")
            .await
            .unwrap();
        let deposed = outbox.database.client().await;
        let deposed = tokio::spawn(async move { compact(&deposed, &token(1)).await });
        outbox.wait_for_a_lock().await;
        taker.batch_execute("COMMIT").await.unwrap();
        assert_eq!(deposed.await.unwrap().unwrap(), 0);
        assert_eq!(outbox.ledger_rows().await, 3);
        assert_eq!(compact(&outbox.client, &token(1)).await.unwrap(), 0);
        assert_eq!(compact(&outbox.client, &token(2)).await.unwrap(), 1);
        assert_eq!(outbox.ledger_rows().await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_under_a_moved_epoch_writes_nothing() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    let taker = outbox.database.client().await;
    taker
        .batch_execute("BEGIN; UPDATE outboxd.lease SET epoch = 2, owner = 'taker'")
        .await
        .unwrap();
    let rows = [delivered(1, 10), delivered(SEGMENT_ROWS, 10)];
    let ledger = outbox.ledger().await;
    let deposed = outbox.database.client().await;
    let waiting = tokio::spawn(async move {
        let statement = Marks::Ledger(ledger).statement(&rows, None).unwrap();
        statement.run(&deposed).await
    });
    outbox.wait_for_a_lock().await;
    taker.batch_execute("COMMIT").await.unwrap();
    let refused = waiting.await.unwrap();
    assert!(
        matches!(refused, Err(MarkError::NotLeader { .. })),
        "{refused:?}"
    );
    assert_eq!(outbox.ledger_rows().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_lease_marks_nothing_whatever_the_mark() {
    for mark in [Mark::Ledger, Mark::SentAt, Mark::Delete] {
        let outbox = Outbox::create_for(USUAL, "ledger", mark).await;
        outbox.client.execute(ROWS, &[&2_i64]).await.unwrap();
        let rows = outbox.standing().await;
        let marks = outbox.marks(mark).await;
        outbox.run("UPDATE outboxd.lease SET released = true").await;
        let refused = marks
            .statement(&rows, None)
            .unwrap()
            .run(&outbox.client)
            .await;
        assert!(
            matches!(refused, Err(MarkError::NotLeader { .. })),
            "{mark:?}: {refused:?}"
        );
        assert_eq!(outbox.standing().await.len(), 2);
        assert_eq!(
            outbox.unsent_by_the_view().await,
            (mark != Mark::None).then_some(2)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sent_is_exact_so_the_table_minus_the_ledger_is_what_is_unsent() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    outbox.client.execute(ROWS, &[&2_i64]).await.unwrap();
    outbox.run("DELETE FROM outboxd.outbox").await;
    let table = outbox.table().await;
    outbox
        .states()
        .start_now(&table.layout, SkippedBy::Numbers)
        .await
        .unwrap();
    outbox.client.execute(ROWS, &[&3_i64]).await.unwrap();
    outbox.run("BEGIN").await;
    outbox.client.execute(ROWS, &[&2_i64]).await.unwrap();
    outbox.run("ROLLBACK").await;
    outbox.client.execute(ROWS, &[&2_i64]).await.unwrap();
    // Skipped 1 and 2, rolled back 6 and 7; 4 is held, its row and its number stay.
    let mut ledger = outbox.ledger().await;
    ledger.note_rolled_back(&RangeSet::parse_multirange("{[6,8)}").unwrap());
    let sent: Vec<Delivered> = outbox
        .standing()
        .await
        .into_iter()
        .filter(|row| ![1, 2, 4].contains(&row.seq.unwrap()))
        .collect();
    let mut marks = Marks::Ledger(ledger);
    let statement = marks.statement(&sent, None).unwrap();
    statement.run(&outbox.client).await.unwrap();
    marks.committed(&sent);
    assert_eq!(
        outbox.sent().await.to_multirange_text(),
        "{[3,4),[5,6),[8,10)}"
    );
    compact(&outbox.client, &token(1)).await.unwrap();
    assert_eq!(
        outbox.sent().await.to_multirange_text(),
        "{[3,4),[5,6),[8,10)}"
    );
    let unsent: Vec<i64> = outbox
        .client
        .query(
            "SELECT seq FROM outbox_status WHERE NOT sent ORDER BY 1",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(unsent, [1, 2, 4]);
    let reloaded = outbox.ledger().await;
    assert_eq!(
        reloaded.settled().to_multirange_text(),
        "{[1,4),[5,6),[8,10)}"
    );
    assert_eq!(reloaded.tail().map(|tail| tail.seq), Some(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_row_is_a_repetition_only_if_sent_with_its_commit_not_above_high_lsn() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    outbox
        .mark(&[delivered(1, 100), delivered(3, 200)])
        .await
        .unwrap();
    let mut ledger = outbox.ledger().await;
    let rows = [
        streamed(1, 100),
        streamed(2, 100),
        streamed(3, 150),
        streamed(4, 300),
    ];
    let settled = ledger.settled_before(&outbox.client, &rows).await.unwrap();
    assert_eq!(settled, [true, false, true, false]);
    let reused = ledger
        .settled_before(&outbox.client, &[streamed(3, 201)])
        .await;
    assert!(
        matches!(reused, Err(MarkError::NumberReused { seq: 3, .. })),
        "{reused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_row_is_compared_with_the_oldest_generation_that_bounds_its_commit() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    outbox
        .mark(&[delivered(1, 100), delivered(2, 100)])
        .await
        .unwrap();
    outbox.states().begin_generation(1).await.unwrap();
    outbox.mark(&[delivered(1, 200)]).await.unwrap();
    outbox.states().begin_generation(2).await.unwrap();
    outbox
        .mark(&[delivered(1, 300), delivered(7, 300)])
        .await
        .unwrap();
    for _ in 0..2 {
        let mut ledger = outbox.ledger().await;
        assert_eq!(ledger.generation(), 3);
        let rows = [
            streamed(2, 90),  // the first generation's
            streamed(2, 150), // the second's, which did not send it
            streamed(1, 150),
            streamed(7, 250),
            streamed(2, 250),
        ];
        let settled = ledger.settled_before(&outbox.client, &rows).await.unwrap();
        assert_eq!(settled, [true, false, true, true, false]);
        compact(&outbox.client, &token(1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_of_a_segment_finds_a_missed_row_and_closes_it_only_when_there_is_none() {
    for major in [14, USUAL] {
        let outbox = Outbox::create(major, "ledger").await;
        outbox.client.execute(ROWS, &[&5_i64]).await.unwrap();
        outbox.stands_as_sent(0, "{[1,3),[4,1000000)}", 100).await;
        let mut ledger = outbox.ledger().await;
        assert!(ledger.audits(OUTBOX, "seq").is_empty(), "3 is a hole");
        // Whoever says that 3 is dead is wrong: its row stands.
        ledger.note_rolled_back(&RangeSet::parse_multirange("{[3,4)}").unwrap());
        let audits = ledger.audits(OUTBOX, "seq");
        assert_eq!(audits.len(), 1);
        let missed = audits[0].run(&outbox.client).await.unwrap();
        assert_eq!(missed.to_multirange_text(), "{[3,4)}");
        assert!(!outbox.is_closed(0).await);
        outbox.mark(&[delivered(3, 100)]).await.unwrap();
        let ledger = outbox.ledger().await;
        let audits = ledger.audits(OUTBOX, "seq");
        assert!(audits[0].run(&outbox.client).await.unwrap().is_empty());
        assert!(outbox.is_closed(0).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_under_a_moved_epoch_closes_nothing() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    outbox.stands_as_sent(0, "{[1,1000000)}", 100).await;
    let ledger = outbox.ledger().await;
    outbox.run("UPDATE outboxd.lease SET epoch = 2").await;
    let _ = ledger.audits(OUTBOX, "seq")[0].run(&outbox.client).await;
    assert!(!outbox.is_closed(0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_segment_is_not_kept_in_memory_and_is_looked_up_when_asked_for() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    // 7 is dead: the segment is closed without it.
    outbox.stands_as_sent(0, "{[1,7),[8,1000000)}", 100).await;
    outbox.stands_as_sent(1, "{[1000000,1000003)}", 200).await;
    outbox
        .run("UPDATE outboxd.ledger SET closed = true WHERE segment = 0")
        .await;
    let mut ledger = outbox.ledger().await;
    assert_eq!(ledger.highest(), 1_000_002);
    assert_eq!(ledger.settled().to_multirange_text(), "{[0,1000003)}");
    let rows = [streamed(5, 90), streamed(7, 90), streamed(1_000_001, 90)];
    let settled = ledger.settled_before(&outbox.client, &rows).await.unwrap();
    assert_eq!(settled, [true, false, true]);
    // The same in the moment in which a segment is closed.
    outbox.run("UPDATE outboxd.ledger SET closed = false").await;
    let mut ledger = outbox.ledger().await;
    ledger.closed(0);
    let settled = ledger.settled_before(&outbox.client, &rows).await.unwrap();
    assert_eq!(settled, [true, false, true]);
    assert!(ledger.audits(OUTBOX, "seq").is_empty());
}

/// A number of a closed segment that comes again with a later commit is a reused one, loaded or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_number_of_a_closed_segment_is_noticed() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    outbox.stands_as_sent(0, "{[1,1000000)}", 100).await;
    outbox.run("UPDATE outboxd.ledger SET closed = true").await;
    let mut ledger = outbox.ledger().await;
    let reused = ledger
        .settled_before(&outbox.client, &[streamed(5, 101)])
        .await;
    assert!(
        matches!(reused, Err(MarkError::NumberReused { seq: 5, .. })),
        "{reused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_view_says_for_each_mark_which_rows_were_sent() {
    for major in [14, USUAL] {
        for mark in [Mark::Ledger, Mark::SentAt, Mark::Delete, Mark::None] {
            let outbox = Outbox::create_for(major, "view", mark).await;
            outbox.client.execute(ROWS, &[&3_i64]).await.unwrap();
            let rows = outbox.standing().await;
            let marks = outbox.marks(mark).await;
            if let Some(statement) = marks.statement(&rows[..2], None) {
                statement.run(&outbox.client).await.unwrap();
            }
            let sql = "SELECT sent, sent_at IS NOT NULL FROM outbox_status ORDER BY seq";
            let shown: Vec<(Option<bool>, bool)> = outbox
                .client
                .query(sql, &[])
                .await
                .unwrap()
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .collect();
            let expected = match mark {
                Mark::Ledger | Mark::SentAt => {
                    vec![(Some(true), true), (Some(true), true), (Some(false), false)]
                }
                Mark::Delete => vec![(Some(false), false)],
                Mark::None => vec![(None, false); 3],
            };
            assert_eq!(shown, expected, "{mark:?} on PostgreSQL {major}");
        }
    }
}

/// A stream that begins anew brings all of them again, a hundred or two at a time.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_closed_segments_are_asked_for_by_the_batch() {
    let outbox = Outbox::create(USUAL, "ledger").await;
    // One segment with every seventh number rolled back, and one without a hole.
    outbox
        .run(
            "INSERT INTO outboxd.ledger (outbox, generation, segment, sent, high_lsn, last_seq, last_id, closed, epoch)
             SELECT 'public.outbox', 1, n / 1000000, range_agg(int8range(n, n, '[]')), '0/64', max(n), 'x', true, 1
             FROM generate_series(0, 1999999::int8) AS n WHERE n >= 1000000 OR n % 7 > 0 GROUP BY n / 1000000",
        )
        .await;
    let mut ledger = outbox.ledger().await;
    let began = std::time::Instant::now();
    for first in (900_000..1_100_000_i64).step_by(200) {
        let rows: Vec<_> = (first..first + 200).map(|seq| streamed(seq, 50)).collect();
        let settled = ledger.settled_before(&outbox.client, &rows).await.unwrap();
        let expected = (first..first + 200).map(|seq| seq >= 1_000_000 || seq % 7 > 0);
        assert!(settled.into_iter().eq(expected));
    }
    let elapsed = began.elapsed();
    assert!(elapsed.as_secs() < 10, "200,000 numbers took {elapsed:?}");
}

/// A test of every type that `seq` may have.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_any_integer_type_is_audited_and_closed() {
    for (kind, first) in [
        ("smallint", -5),
        ("integer", 2_000_000),
        ("bigint", -1_000_005_i64),
    ] {
        let outbox = Outbox::create(USUAL, "ledger").await;
        outbox
            .run(&format!(
                "DROP VIEW outbox_status;
                 ALTER TABLE outbox ALTER COLUMN seq DROP IDENTITY;
                 ALTER TABLE outbox ALTER COLUMN seq TYPE {kind};
                 ALTER TABLE outbox ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (MINVALUE {first} START {first})"
            ))
            .await;
        outbox.client.execute(ROWS, &[&10_i64]).await.unwrap();
        let segments = [segment_of(first), segment_of(first + 9)];
        outbox.mark(&outbox.standing().await).await.unwrap();
        for segment in segments {
            let numbers: RangeSet = std::iter::once(numbers_of(segment)).collect();
            let mut ledger = outbox.ledger().await;
            ledger.note_rolled_back(&numbers);
            for audit in ledger.audits(OUTBOX, "seq") {
                assert!(
                    audit.run(&outbox.client).await.unwrap().is_empty(),
                    "{kind}"
                );
            }
            assert!(outbox.is_closed(segment).await, "{kind}");
        }
    }
}
