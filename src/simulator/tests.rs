//! Ten thousand schedules, and the planted defects that the judge must find.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::mutations::{ALL, Mutation};
use super::schedule::Schedule;
use super::trace::{told, verdict};

const SCHEDULES: u64 = 10_000;
/// A planted defect is found among so many seeds, of which those are tried in which it can do harm; a stop in the
/// middle of a transaction is rare, and so is a topic that grows while rows are in flight: they are looked for among ten
/// times as many.
const SEEDS_TO_FIND: u64 = 40_000;

/// The first of these seeds under which a promise is broken; `told` hears how many were tried.
fn first_broken(
    seeds: std::ops::Range<u64>,
    mutation: Mutation,
    told: impl Fn(u64) + Sync,
) -> Option<u64> {
    let (next, broken) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || broken.load(Ordering::Relaxed) < seed {
                        return;
                    }
                    if seed % 10_000 == 0 {
                        told(seed - seeds.start);
                    }
                    let schedule = Schedule::of(seed);
                    if mutation.can_harm(&schedule) && verdict(&schedule, mutation).is_some() {
                        broken.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let broken = broken.into_inner();
    (broken != u64::MAX).then_some(broken)
}

#[test]
fn every_promise_holds_in_ten_thousand_schedules() {
    if let Some(seed) = first_broken(0..SCHEDULES, Mutation::None, |_| {}) {
        panic!("{}", told(seed, Mutation::None));
    }
}

#[test]
fn every_planted_defect_is_found() {
    let find = |mutation: &Mutation| {
        let seeds = match mutation {
            Mutation::StopWithinTransaction | Mutation::SuccessorNotAwaited => 10 * SEEDS_TO_FIND,
            _ => SEEDS_TO_FIND,
        };
        let found = first_broken(0..seeds, *mutation, |_| {});
        println!("{mutation:?}: seed {found:?}");
        found.is_none()
    };
    let missed: Vec<_> = ALL.into_iter().filter(find).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// `make simulate`: `SEEDS=1000000` or `SEEDS=5..9`, or one `SEED=7` with its events.
#[test]
#[ignore = "run by `make simulate`"]
fn simulate() {
    let number = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    if let Some(seed) = number("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        println!("{}", told(seed, Mutation::None));
        assert_eq!(verdict(&Schedule::of(seed), Mutation::None), None);
        return;
    }
    let seeds = number("SEEDS").unwrap_or_else(|| "100000".to_owned());
    let (first, end) = seeds.split_once("..").unwrap_or(("0", &seeds));
    let parse = |text: &str| {
        text.parse()
            .expect("SEEDS is a number or a range such as 5..9")
    };
    run_all(parse(first), parse(end));
}

fn run_all(first: u64, end: u64) {
    let began = Instant::now();
    let told_of = |schedules| progress(schedules, began);
    if let Some(broken) = first_broken(first..end, Mutation::None, told_of) {
        let events = told(broken, Mutation::None);
        panic!("{events}replay it with SEED={broken}");
    }
    progress(end - first, began);
    println!("every promise holds in {} schedules", end - first);
}

fn progress(schedules: u64, began: Instant) {
    let rate = schedules as f64 / began.elapsed().as_secs_f64();
    println!("{schedules} schedules, {rate:.0} a second");
}
