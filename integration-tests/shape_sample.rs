//! The sample of shapes in `make test`: some cases, others each day, the same for the same `SEED`.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use crate::harness::postgres::USUAL;
use crate::harness::topic::Read;
use crate::shapes::case::{Case, Outcome};
use crate::shapes::events::{Event, Wanted};
use crate::shapes::judge::{Log, judge};
use crate::shapes::program::cases;
use crate::shapes::server::Servers;
use crate::shapes::shape::{PLAIN, aggregate, payload_text};

/// Cases of one run at most, on two servers of their own.
const CASES: usize = 8;
const WORKERS: usize = 2;

/// No case is begun after so long: others run beside this test.
const BEGUN_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn what_check_lets_pass_holds_and_what_it_refuses_run_refuses() {
    let seed = seed();
    let sample = sample(seed);
    let began_at = Instant::now();
    let workers = sample.chunks(CASES / WORKERS).map(async |cases| {
        let mut servers = Servers::default();
        for case in cases {
            if began_at.elapsed() > BEGUN_WITHIN {
                break;
            }
            let outcome = case.run(&mut servers).await;
            eprintln!("{}: {outcome:?}", case.name());
            assert!(
                !matches!(outcome, Outcome::Broken(_)),
                "SEED={seed}, {}: {outcome:?}",
                case.name()
            );
        }
    });
    futures_util::future::join_all(workers).await;
}

/// `SEED`, or the day.
fn seed() -> u64 {
    let given = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = given.unwrap_or(now.unwrap_or_default().as_secs() / 86_400);
    // Past libtest, which keeps what tests print: a run can be repeated only by who knows its seed.
    let _ = writeln!(std::io::stderr(), "shapes of SEED={seed}");
    seed
}

fn sample(seed: u64) -> Vec<Case> {
    let mut cases = cases();
    // A server of another version is started for some, and 100,000 rows take their time.
    cases.retain(|case| case.shape.major == USUAL && !case.shape.name.contains("100,000"));
    fastrand::Rng::with_seed(seed).shuffle(&mut cases);
    cases.truncate(CASES);
    cases
}

#[test]
fn the_judge_of_shapes_sees_each_fault() {
    let events: Vec<Event> = (1..=21).map(event).collect();
    let clean: Vec<u64> = (1..=21).collect();
    assert_eq!(judged(&events, &clean, 1), Vec::<String>::new());
    let lost: Vec<u64> = (1..=20).collect();
    assert_eq!(judged(&events, &lost, 1), ["1 lost: 21 of order a-0"]);
    let mut turned = clean.clone();
    turned.swap(0, 7);
    assert_eq!(judged(&events, &turned, 1).len(), 1, "8 before 1");
    let mut repeated = clean.clone();
    repeated.push(3);
    assert!(judged(&events, &repeated, 1)[0].contains("repeated"));
    let mut phantom = clean.clone();
    phantom.push(22);
    assert!(judged(&events, &phantom, 1)[0].contains("phantom"));
    assert!(judged(&events, &clean, 2)[0].contains("never committed"));
}

fn event(number: u64) -> Event {
    Event {
        number,
        kind: "order",
        id: format!("event {number}"),
        states: vec![1],
        wanted: Wanted::Always,
    }
}

/// What the judge says of a log with these rows, in this state.
fn judged(events: &[Event], numbers: &[u64], state: u32) -> Vec<String> {
    let reads: Vec<Read> = numbers
        .iter()
        .zip(0..)
        .map(|(number, offset)| Read {
            topic: "order".to_owned(),
            partition: 0,
            offset,
            key: Some(aggregate(*number).into_bytes()),
            value: Some(payload_text(*number, state).into_bytes()),
            headers: vec![(
                "id".to_owned(),
                Some(format!("event {number}").into_bytes()),
            )],
            timestamp_ms: None,
        })
        .collect();
    let log = Log {
        shape: &PLAIN,
        reads: &reads,
        partitions: &HashMap::from([("order".to_owned(), 1)]),
        topic_of: &str::to_owned,
    };
    judge(events, &log).lines()
}
