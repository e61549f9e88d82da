//! `make faults`: every row of the matrix, one after the other, and the table of what each has shown.
//!
//! Settings come as environment variables: `ROW=14` or `ROW=1,14`, `FULL=1`, `FRESH=1`, `JOBS=2`
//! (rows at a time); `SOAK=minutes` and `SEED`.

mod report;
mod results;
pub mod soak;
mod tests;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use tokio::runtime::Runtime;

use super::rig::Marks;
use super::scene::{Scene, Size};
use super::table::{Modes, ROWS, Row, Scenario, Shown};
use super::tally::Tally;
use results::{Entry, Results};

/// A scenario of moderate size that takes so long has come to a stop.
const LASTS_MAX: Duration = Duration::from_secs(600);

/// What the environment asks for.
struct Settings {
    rows: Vec<u8>,
    size: Size,
    is_fresh: bool,
    /// Rows at a time.
    jobs: usize,
    soak_minutes: Option<u64>,
}

impl Settings {
    fn read() -> Self {
        let is_set =
            |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0");
        let rows = std::env::var("ROW").unwrap_or_default();
        let numbers = rows.split([',', ' ']).filter(|text| !text.is_empty());
        let numbers = numbers.map(|text| {
            text.parse()
                .unwrap_or_else(|_| panic!("ROW: `{text}` is not a row's number"))
        });
        let soak = std::env::var("SOAK")
            .ok()
            .filter(|minutes| !minutes.is_empty());
        Self {
            rows: numbers.collect(),
            size: if is_set("FULL") {
                Size::Full
            } else {
                Size::Moderate
            },
            is_fresh: is_set("FRESH"),
            jobs: std::env::var("JOBS")
                .ok()
                .and_then(|jobs| jobs.parse().ok())
                .unwrap_or(2),
            soak_minutes: soak.map(|minutes| minutes.parse().expect("SOAK: a number of minutes")),
        }
    }

    /// Rows that are asked for, by number.
    fn chosen(&self) -> Vec<&'static Row> {
        let mut rows: Vec<&Row> = ROWS.iter().collect();
        rows.sort_by_key(|row| row.number);
        rows.retain(|row| self.rows.is_empty() || self.rows.contains(&row.number));
        rows
    }
}

/// Runs what is asked for; fails when a row is red.
pub fn main() -> ExitCode {
    let settings = Settings::read();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build();
    let runtime = runtime.expect("start a runtime");
    let is_green = match settings.soak_minutes {
        Some(minutes) => runtime.block_on(soak::run(minutes)),
        None => Run::new(&settings).run(&runtime),
    };
    if is_green {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Rows that wait to be run, and what those before them have shown.
struct Run {
    size: Size,
    jobs: usize,
    is_whole: bool,
    rows: Vec<&'static Row>,
    waiting: Mutex<VecDeque<&'static Row>>,
    results: Mutex<Results>,
}

impl Run {
    fn new(settings: &Settings) -> Self {
        let rows = settings.chosen();
        Self {
            size: settings.size,
            jobs: settings.jobs,
            is_whole: settings.rows.is_empty(),
            waiting: Mutex::new(rows.iter().copied().collect()),
            rows,
            results: Mutex::new(Results::open(settings.size, settings.is_fresh)),
        }
    }

    /// Runs every row, some beside each other for they mostly wait, and prints the table; whether none is red.
    fn run(self, runtime: &Runtime) -> bool {
        thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    while let Some(row) = self.next() {
                        runtime.block_on(self.run_rounds(row));
                    }
                });
            }
        });
        let results = self.results.into_inner().expect("no thread panicked");
        println!("\n{}", report::table(&self.rows, &results, self.size));
        self.rows.iter().all(|row| !results.is_red(row.number))
    }

    fn next(&self) -> Option<&'static Row> {
        self.waiting.lock().expect("no thread panicked").pop_front()
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().expect("no thread panicked")
    }

    /// What is left of a row's rounds, until one is red.
    async fn run_rounds(&self, row: &Row) {
        let rounds = self.size.rounds(row);
        while self.results().rounds(row.number) < rounds && !self.results().is_red(row.number) {
            println!("row {:2} begins: {}", row.number, row.fault);
            let Some(entry) = run_row(row, self.size).await else {
                break;
            };
            let (verdict, seconds) = (report::verdict(&entry.tally), entry.seconds);
            println!("row {:2} is {verdict}, {seconds:.0} s", row.number);
            for line in entry.tally.broken.iter().flat_map(|text| text.lines()) {
                println!("        {line}");
            }
            let mut results = self.results();
            results.add(entry);
            // After each row: a run that is stopped has shown what it has shown.
            if self.is_whole {
                report::write(&self.rows, &results, self.size);
            }
        }
    }
}

impl Size {
    pub fn rounds(self, row: &Row) -> usize {
        if self == Self::Full { row.rounds } else { 1 }
    }
}

/// One round of a row; `None` where this machine can't produce it.
async fn run_row(row: &Row, size: Size) -> Option<Entry> {
    let began_at = Instant::now();
    let tally = match &row.shown {
        Shown::By(needs, scenarios) if needs.iter().all(|need| need.lacks().is_none()) => {
            let mut tally = Tally::default();
            for marks in marks(row, size) {
                for scenario in *scenarios {
                    tally.add(play(*scenario, Scene::with(size, marks)).await);
                }
            }
            tally
        }
        Shown::ByTests(names) => tests::run(row.number, names),
        Shown::By(..) | Shown::Nowhere(_) => return None,
    };
    Some(Entry {
        row: row.number,
        seconds: began_at.elapsed().as_secs_f64(),
        tally,
    })
}

/// The marks that a row is played with: two of them, others each day, or all with `FULL=1`.
///
/// A row of both modes has one in each at a time; one of replication alone is played once more.
fn marks(row: &Row, size: Size) -> Vec<Marks> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let day = now.unwrap_or_default().as_secs() / 86_400;
    let first = (u64::from(row.number) + day) as usize % Marks::ROTATION.len();
    let plays = match (size, row.modes) {
        (Size::Full, _) => Marks::ROTATION.len(),
        (_, Modes::Replication) => 2,
        _ => 1,
    };
    let turns = Marks::ROTATION.iter().cycle().skip(first);
    turns.take(plays).copied().collect()
}

/// Plays a scenario to its end, which may be a panic, or as long as it may take.
async fn play(scenario: Scenario, scene: Scene) -> Tally {
    let lasts = scene.pick(LASTS_MAX, LASTS_MAX, 9 * LASTS_MAX);
    let played = AssertUnwindSafe(scenario(&scene)).catch_unwind();
    match tokio::time::timeout(lasts, played).await {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => scene.require(false, || text_of(&*panic)),
        Err(_) => scene.require(false, || format!("did not end within {lasts:?}")),
    }
    scene.finish()
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "panicked".to_owned())
}
