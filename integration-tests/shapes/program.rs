//! `make shapes`: every shape in every mode with every mark, and what came of each.
//!
//! Settings come as environment variables: `SHAPE=text` (a part of its name, or several with `|` between them), `MODE`, `MARK`, `JOBS=4` (cases at a
//! time), `FRESH=1`.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use tokio::runtime::Runtime;

use super::case::{Case, Outcome};
use super::results::{Entry, Results};
use super::server::Servers;
use super::shape::PAIRS;

/// Runs what is asked for; fails when a case is broken.
pub fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build();
    let runtime = runtime.expect("start a runtime");
    let is_green = Run::new().run(&runtime);
    if is_green {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Every case of the table.
pub fn cases() -> Vec<Case> {
    let shapes = super::all();
    let pairs = shapes.iter().flat_map(|shape| {
        PAIRS.map(|pair| Case {
            shape: *shape,
            pair,
        })
    });
    pairs.collect()
}

struct Run {
    cases: Vec<Case>,
    jobs: usize,
    waiting: Mutex<VecDeque<Case>>,
    results: Mutex<Results>,
}

impl Run {
    fn new() -> Self {
        let setting = |name: &str| std::env::var(name).unwrap_or_default();
        let (shape, mode, mark) = (setting("SHAPE"), setting("MODE"), setting("MARK"));
        let mut cases = cases();
        cases.retain(|case| {
            shape.split('|').any(|part| case.shape.name.contains(part))
                && case.pair.mode.contains(&mode)
                && case.pair.mark.contains(&mark)
        });
        let results = Results::open(!matches!(setting("FRESH").as_str(), "" | "0"));
        let waiting = cases
            .iter()
            .filter(|case| results.of(&case.name()).is_none());
        Self {
            waiting: Mutex::new(waiting.copied().collect()),
            jobs: setting("JOBS").parse().unwrap_or(4),
            results: Mutex::new(results),
            cases,
        }
    }

    /// Runs every case, some beside each other, and prints the summary; whether all is as it should be.
    fn run(self, runtime: &Runtime) -> bool {
        let began_at = Instant::now();
        thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    let mut servers = Servers::default();
                    while let Some(case) = self.next() {
                        self.run_case(&case, &mut servers, runtime);
                    }
                });
            }
        });
        println!("\n{} s\n", began_at.elapsed().as_secs());
        self.summary()
    }

    fn next(&self) -> Option<Case> {
        self.waiting.lock().expect("no thread panicked").pop_front()
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().expect("no thread panicked")
    }

    fn run_case(&self, case: &Case, servers: &mut Servers, runtime: &Runtime) {
        let began_at = Instant::now();
        let outcome = runtime.block_on(case.run(servers));
        let seconds = began_at.elapsed().as_secs_f64();
        println!("{seconds:4.0} s  {}: {}", case.name(), line(&outcome));
        self.results().add(Entry {
            case: case.name(),
            seconds,
            outcome,
        });
    }

    fn summary(&self) -> bool {
        let results = self.results();
        let (mut holds, mut refused, mut broken) = (0, 0, 0);
        for case in &self.cases {
            let Some(entry) = results.of(&case.name()) else {
                continue;
            };
            match &entry.outcome {
                Outcome::Holds => holds += 1,
                Outcome::Refused(_) => refused += 1,
                Outcome::LeftOut(_) => println!("{}: {}", case.name(), line(&entry.outcome)),
                Outcome::Broken(_) => {
                    broken += 1;
                    println!("{}: {}", case.name(), line(&entry.outcome));
                }
            }
        }
        println!("{holds} hold, {refused} are refused, {broken} are broken");
        broken == 0
    }
}

fn line(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Holds => "holds".to_owned(),
        Outcome::Refused(reason) => format!("refused: {}", first_line(reason)),
        Outcome::LeftOut(why) => format!("left out: {why}"),
        Outcome::Broken(faults) => format!("BROKEN: {}", faults.join("\n        ")),
    }
}

/// What a list has room for.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(200).collect()
}
