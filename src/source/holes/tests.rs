//! Pollers on the simulated server: the rule as it stands, and with one part of it left out at a time.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;
use crate::simulator::server::{Commit, Habits, Server};

const SCHEDULES: u64 = 2_000;

/// What a poller gets wrong on purpose, to show that the judge sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// New holes are looked up before their first lock reading and not after it.
    LooksUpBeforeTheLocks,
    /// A look-up that finds rows is not widened.
    ForgetsSiblings,
    /// Turns that do not read the locks look nothing up.
    SkipsLookUpsWithTheLocks,
    /// A transaction that holds its lock is taken for running.
    TakesLocksForProgress,
    /// The lock reading misses a holder now and then.
    OverlooksAHolder,
    /// What a look-up found is published behind the new rows.
    PublishesFindsLast,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    rows: usize,
    missed: usize,
    wrongly_dead: usize,
    out_of_order: usize,
    still_open: u64,
}

impl Verdict {
    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.missed += other.missed;
        self.wrongly_dead += other.wrongly_dead;
        self.out_of_order += other.out_of_order;
        self.still_open += other.still_open;
    }
}

struct Poller {
    flaw: Flaw,
    top: i64,
    holes: Holes,
    /// Holes that were not compared with a lock reading.
    fresh: RangeSet,
    published: Vec<i64>,
    rolled_back: RangeSet,
}

impl Poller {
    fn new(flaw: Flaw) -> Self {
        Self {
            flaw,
            top: 0,
            holes: Holes::new(RollbackProof::OnLocks),
            fresh: RangeSet::new(),
            published: Vec::new(),
            rolled_back: RangeSet::new(),
        }
    }

    /// One turn: every read is a snapshot of its own, and writers run in between.
    fn turn(&mut self, server: &mut Server, rng: &mut Rng) {
        let limit = rng.usize(1..=6);
        let new: Vec<i64> = server
            .rows
            .range(self.top + 1..)
            .take(limit)
            .map(|(&seq, _)| seq)
            .collect();
        self.note(&new);
        server.run(rng, 4);
        let arrivals = if new.is_empty() {
            Arrivals::Nothing
        } else {
            Arrivals::Rows
        };
        let early = self.look_up(server, &self.fresh);
        server.run(rng, 8);
        let mut plan = self.plan(server, rng, arrivals);
        if self.flaw == Flaw::LooksUpBeforeTheLocks {
            plan.look_up.subtract(&self.fresh);
        }
        self.fresh.take();
        server.run(rng, 4);
        let mut found = self.look_up(server, &plan.look_up);
        while !found.is_empty() && self.flaw != Flaw::ForgetsSiblings {
            let Some(wider) = self.holes.widen(&plan, &server.snapshot()) else {
                break;
            };
            server.run(rng, 4);
            plan = wider;
            found = self.look_up(server, &plan.look_up);
        }
        if self.flaw == Flaw::LooksUpBeforeTheLocks {
            found.extend(&early);
        }
        self.rolled_back.extend(&self.holes.answer(&plan, &found));
        let mut union: Vec<i64> = new.into_iter().chain(found.ranges().flatten()).collect();
        if self.flaw != Flaw::PublishesFindsLast {
            union.sort_unstable();
        }
        self.published.extend(union);
    }

    fn note(&mut self, new: &[i64]) {
        let Some(&last) = new.last() else {
            return;
        };
        let rows: RangeSet = new.iter().copied().collect();
        self.fresh = rows.gaps(self.top + 1..=last).collect();
        self.holes.note(self.fresh.clone());
        self.top = last;
    }

    fn plan(&mut self, server: &mut Server, rng: &mut Rng, arrivals: Arrivals) -> Plan {
        if rng.u8(..10) < 4 {
            return match self.flaw {
                Flaw::SkipsLookUpsWithTheLocks => Plan::default(),
                _ => self.holes.plan_without_locks(),
            };
        }
        let mut reading = server.read_locks(rng);
        if self.flaw == Flaw::TakesLocksForProgress {
            reading
                .holders
                .values_mut()
                .for_each(|progress| *progress = Some(10));
        }
        if self.flaw == Flaw::OverlooksAHolder && rng.u8(..10) == 0 {
            reading.holders.pop_first();
        }
        self.holes.plan(&reading, arrivals, Lsn(0))
    }

    fn look_up(&self, server: &Server, numbers: &RangeSet) -> RangeSet {
        let visible = |range| server.rows.range(range).map(|(&seq, _)| seq);
        numbers.ranges().flat_map(visible).collect()
    }

    fn judge(&self, server: &Server) -> Verdict {
        let published: BTreeSet<i64> = self.published.iter().copied().collect();
        let committed = server.commits.iter().flat_map(|commit| &commit.events);
        let places: BTreeMap<i64, usize> =
            committed.zip(0..).map(|(row, at)| (row.seq, at)).collect();
        let mut versions = BTreeMap::new();
        let mut out_of_order = 0;
        for seq in &self.published {
            let row = server.rows[seq];
            if let Some(aggregate) = row.aggregate {
                let last = versions.entry(aggregate).or_insert(0);
                out_of_order += usize::from(places[seq] < *last);
                *last = places[seq].max(*last);
            }
        }
        Verdict {
            rows: server.rows.len(),
            missed: server
                .rows
                .keys()
                .filter(|seq| !published.contains(seq))
                .count(),
            wrongly_dead: server
                .rows
                .keys()
                .filter(|seq| self.rolled_back.contains(**seq))
                .count(),
            out_of_order,
            still_open: self.holes.len(),
        }
    }
}

fn schedule(seed: u64, flaw: Flaw) -> Verdict {
    let mut rng = Rng::with_seed(seed);
    let (mut server, mut poller) = (Server::new(1, Habits::default()), Poller::new(flaw));
    for _ in 0..60 {
        server.run(&mut rng, 12);
        poller.turn(&mut server, &mut rng);
    }
    server.finish(&mut rng);
    let mut idle = Rng::with_seed(seed);
    while poller.top < server.rows.last_key_value().map_or(0, |(&seq, _)| seq) {
        quiet_turn(&mut poller, &mut server, &mut idle);
    }
    for _ in 0..40 {
        quiet_turn(&mut poller, &mut server, &mut idle);
    }
    assert_eq!(
        poller.published.len(),
        poller.published.iter().collect::<BTreeSet<_>>().len(),
        "published twice, seed {seed}"
    );
    poller.judge(&server)
}

/// A turn on a server where no writer starts.
fn quiet_turn(poller: &mut Poller, server: &mut Server, rng: &mut Rng) {
    server.closed = true;
    poller.turn(server, rng);
}

fn schedules(flaw: Flaw, count: u64) -> Verdict {
    let mut sum = Verdict::default();
    for seed in 0..count {
        sum.add(&schedule(seed, flaw));
    }
    sum
}

#[test]
fn nothing_is_missed_wrongly_dead_or_out_of_order() {
    for seed in 0..SCHEDULES {
        let verdict = schedule(seed, Flaw::None);
        let rows = verdict.rows;
        assert_eq!(
            verdict,
            Verdict {
                rows,
                ..Verdict::default()
            },
            "seed {seed}"
        );
    }
}

#[test]
fn a_look_up_before_the_first_lock_reading_lets_successors_overtake() {
    let verdict = schedules(Flaw::LooksUpBeforeTheLocks, 2_000);
    assert!(verdict.out_of_order > 0, "{verdict:?}");
}

#[test]
fn a_transaction_that_ends_before_the_look_up_shows_its_later_row_first_unless_the_look_up_is_widened()
 {
    let verdict = schedules(Flaw::ForgetsSiblings, 500);
    assert!(verdict.out_of_order > 0, "{verdict:?}");
}

#[test]
fn a_turn_without_locks_and_look_ups_lets_successors_overtake() {
    let verdict = schedules(Flaw::SkipsLookUpsWithTheLocks, 500);
    assert!(verdict.out_of_order > 0, "{verdict:?}");
}

#[test]
fn a_lock_that_outlives_its_commit_lets_successors_overtake_if_it_is_believed() {
    let verdict = schedules(Flaw::TakesLocksForProgress, 500);
    assert!(verdict.out_of_order > 0, "{verdict:?}");
}

#[test]
fn a_holder_that_is_overlooked_makes_live_rows_dead() {
    let verdict = schedules(Flaw::OverlooksAHolder, 500);
    assert!(
        verdict.wrongly_dead > 0 && verdict.missed > 0,
        "{verdict:?}"
    );
}

#[test]
fn finds_published_behind_new_rows_are_out_of_order() {
    let verdict = schedules(Flaw::PublishesFindsLast, 500);
    assert!(verdict.out_of_order > 0, "{verdict:?}");
}

struct Found {
    rows: RangeSet,
    rolled_back: RangeSet,
}

/// Reads the locks and looks holes up, while writers go on in between.
fn look_up(holes: &mut Holes, server: &mut Server, rng: &mut Rng, passed: Lsn) -> Found {
    let reading = server.read_locks(rng);
    let plan = holes.plan(&reading, Arrivals::Rows, passed);
    server.run(rng, 4);
    let standing = server.rows.keys().copied();
    let rows: RangeSet = standing.filter(|&seq| plan.look_up.contains(seq)).collect();
    let rolled_back = holes.answer(&plan, &rows);
    Found { rows, rolled_back }
}

/// A stream that lags behind the commits and loses some rows; the holes come from what it brought.
fn streamed(seed: u64, needs_stream: bool) -> (usize, usize) {
    let mut rng = Rng::with_seed(seed);
    let mut server = Server::new(1, Habits::default());
    let proof = if needs_stream {
        RollbackProof::NeedsStream
    } else {
        RollbackProof::OnLocks
    };
    let mut holes = Holes::new(proof);
    let (mut sent, mut lost, mut finds) = (RangeSet::new(), RangeSet::new(), RangeSet::new());
    let (mut at, mut passed, mut rolled_back) = (0, 0, RangeSet::new());
    for turn in 0..400 {
        if turn == 300 {
            server.finish(&mut rng);
            server.closed = true;
        }
        server.run(&mut rng, 4);
        let of_commit = |commit: &Commit| {
            let rows = commit.events.iter();
            rows.map(|row| (commit.lsn, row.seq)).collect::<Vec<_>>()
        };
        let stream: Vec<(u64, i64)> = server.commits.iter().flat_map(of_commit).collect();
        let until = (at + rng.usize(..3)).min(stream.len());
        let mut brought = RangeSet::new();
        for &(lsn, seq) in &stream[at..until] {
            let kept = if rng.u8(..20) == 0 {
                &mut lost
            } else {
                &mut brought
            };
            kept.insert(seq);
            passed = lsn;
        }
        at = until;
        if at == stream.len() {
            passed = server.wal;
        }
        let top = sent.last().unwrap_or(0);
        sent.extend(&brought);
        if let Some(last) = sent.last().filter(|&last| last > top) {
            holes.note(brought.gaps(top + 1..=last).collect());
        }
        holes.forget(&brought);
        let found = look_up(&mut holes, &mut server, &mut rng, Lsn(passed));
        rolled_back.extend(&found.rolled_back);
        finds.extend(&found.rows);
    }
    let not_lost = finds.difference(&lost).len();
    let wrongly_dead = server
        .rows
        .keys()
        .filter(|seq| rolled_back.contains(**seq))
        .count();
    let top = sent.last().unwrap_or(0);
    let unfound = lost
        .within(0..=top)
        .collect::<RangeSet>()
        .difference(&finds);
    assert!(
        !needs_stream || unfound.is_empty(),
        "seed {seed}: {unfound:?} of {lost:?}"
    );
    assert!(!needs_stream || holes.is_empty(), "seed {seed}: {holes:?}");
    (not_lost as usize, wrongly_dead)
}

#[test]
fn behind_a_stream_the_last_look_up_finds_exactly_what_the_stream_missed() {
    for seed in 0..SCHEDULES / 3 {
        assert_eq!(streamed(seed, true), (0, 0), "seed {seed}");
    }
}

#[test]
fn behind_a_stream_locks_alone_take_rows_on_their_way_for_missed() {
    let not_lost: usize = (0..100).map(|seed| streamed(seed, false).0).sum();
    assert!(not_lost > 0);
}

/// A reading by a snapshot that counts transactions 10 and above as running.
fn reading(holders: &[(&str, Option<Xid>)]) -> LockReading {
    let holders = holders.iter().map(|&(name, xid)| (name.into(), xid));
    LockReading {
        holders: holders.collect(),
        snapshot: "10:10:".parse().unwrap(),
        position: Lsn(7),
    }
}

fn range(first: i64, last: i64) -> RangeSet {
    std::iter::once(first..=last).collect()
}

#[test]
fn groups_that_wait_for_the_same_holders_are_one_group() {
    let mut holes = Holes::new(RollbackProof::OnLocks);
    holes.note(range(1, 1_000_000));
    let both = [("3/1", Some(10)), ("4/1", Some(10))];
    assert_eq!(
        holes.plan(&reading(&both), Arrivals::Rows, Lsn(0)).look_up,
        range(1, 1_000_000)
    );
    holes.note(range(1_000_001, 1_000_005));
    let plan = holes.plan(&reading(&both[..1]), Arrivals::Rows, Lsn(0));
    assert_eq!(plan.look_up, range(1, 1_000_005));
    assert_eq!((holes.group_count(), holes.numbers().range_count()), (1, 1));
}

#[test]
fn a_running_holder_is_not_looked_up_again() {
    let mut holes = Holes::new(RollbackProof::OnLocks);
    holes.note(range(1, 9));
    holes.plan(&reading(&[("3/1", Some(10))]), Arrivals::Rows, Lsn(0));
    let again = holes.plan(&reading(&[("3/1", Some(10))]), Arrivals::Rows, Lsn(0));
    assert_eq!(again, Plan::default());
}

#[test]
fn a_doubtful_holder_is_looked_up_while_rows_arrive() {
    let mut holes = Holes::new(RollbackProof::OnLocks);
    holes.note(range(1, 9));
    let locks = reading(&[("3/1", Some(9))]);
    holes.plan(&locks, Arrivals::Rows, Lsn(0));
    assert_eq!(
        holes.plan(&locks, Arrivals::Rows, Lsn(0)).look_up,
        range(1, 9)
    );
    assert_eq!(
        holes.plan(&locks, Arrivals::Nothing, Lsn(0)),
        Plan::default()
    );
}

#[test]
fn what_the_last_look_up_finds_is_not_dead() {
    let mut holes = Holes::new(RollbackProof::OnLocks);
    holes.note(range(1, 9));
    holes.plan(&reading(&[]), Arrivals::Rows, Lsn(0));
    let plan = holes.plan(&reading(&[]), Arrivals::Nothing, Lsn(0));
    assert_eq!(plan.last, range(1, 9));
    let rolled_back = holes.answer(&plan, &range(4, 5));
    assert_eq!(rolled_back, range(1, 9).difference(&range(4, 5)));
    assert!(holes.is_empty());
}

#[test]
fn a_turn_without_locks_kills_nothing() {
    let mut holes = Holes::new(RollbackProof::OnLocks);
    holes.note(range(1, 9));
    let plan = holes.plan_without_locks();
    assert_eq!(plan.look_up, range(1, 9));
    assert!(holes.answer(&plan, &RangeSet::new()).is_empty());
    assert_eq!(holes.len(), 9);
}
