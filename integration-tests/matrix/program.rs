//! `make faults`: every row of the matrix, one after the other, and the table of what each has shown.
//!
//! Settings come as environment variables: `ROW=14` or `ROW=1,14`, `FULL=1`, `FRESH=1`; `SOAK=minutes` and `SEED`.

mod report;
mod results;
pub mod soak;
mod tests;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::scene::{Scene, Size};
use super::table::{ROWS, Row, Scenario, Shown};
use super::tally::Tally;
use results::{Entry, Results};

/// A scenario of moderate size that takes so long has come to a stop.
const LASTS_MAX: Duration = Duration::from_secs(600);

/// What the environment asks for.
struct Settings {
    rows: Vec<u8>,
    size: Size,
    is_fresh: bool,
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
        None => runtime.block_on(run(&settings)),
    };
    if is_green {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn run(settings: &Settings) -> bool {
    let mut results = Results::open(settings.size, settings.is_fresh);
    let rows = settings.chosen();
    for row in &rows {
        let rounds = if settings.size == Size::Full {
            row.rounds
        } else {
            1
        };
        while results.rounds(row.number) < rounds && !results.is_red(row.number) {
            println!("row {:2}: {} …", row.number, row.fault);
            let Some(entry) = run_row(row, settings.size).await else {
                break;
            };
            println!(
                "        {} in {:.0} s",
                report::verdict(&entry.tally),
                entry.seconds
            );
            for line in entry.tally.broken.iter().flat_map(|text| text.lines()) {
                println!("        {line}");
            }
            results.add(entry);
        }
    }
    let table = report::table(&rows, &results, settings.size);
    println!("\n{table}");
    if settings.rows.is_empty() {
        report::write(&rows, &results, settings.size);
    }
    rows.iter().all(|row| !results.is_red(row.number))
}

/// One round of a row; `None` where this machine can't produce it.
async fn run_row(row: &Row, size: Size) -> Option<Entry> {
    let began_at = Instant::now();
    let tally = match &row.shown {
        Shown::By(needs, scenarios) if needs.iter().all(|need| need.lacks().is_none()) => {
            let mut tally = Tally::default();
            for scenario in *scenarios {
                tally.add(play(*scenario, size).await);
            }
            tally
        }
        Shown::ByTests(names) => tests::run(names),
        Shown::By(..) | Shown::Nowhere(_) => return None,
    };
    Some(Entry {
        row: row.number,
        seconds: began_at.elapsed().as_secs_f64(),
        tally,
    })
}

/// Plays a scenario to its end, which may be a panic, or as long as it may take.
async fn play(scenario: Scenario, size: Size) -> Tally {
    let scene = Scene::new(size);
    let lasts = scene.pick(LASTS_MAX, LASTS_MAX, 6 * LASTS_MAX);
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
