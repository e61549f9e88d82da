//! One run of one row: how large it is to be, and what it has shown so far.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::rig::{Marks, Pair};
use super::tally::Tally;
use crate::harness::oracle::Verdict;

/// How often, how long and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// `make test`: beside other tests, so times are judged generously.
    Gate,
    /// `make faults`.
    Moderate,
    /// `make faults FULL=1`: one round of several.
    Full,
}

/// What may be added to every limit of time where other tests run beside this one; `make faults` adds nothing.
const GATE_SLACK: Duration = Duration::from_secs(45);

/// One run of one row.
#[derive(Debug)]
pub struct Scene {
    pub size: Size,
    marks: Marks,
    tally: Mutex<Tally>,
}

impl Scene {
    pub fn new(size: Size) -> Self {
        Self::with(size, Marks::LEDGER)
    }

    /// A run in which each mode marks in its own way.
    pub fn with(size: Size, marks: Marks) -> Self {
        Self {
            size,
            marks,
            tally: Mutex::default(),
        }
    }

    /// By replication with a mark: `delete` where this run has none, for faults after which only marks tell what was sent.
    pub fn streamed(&self) -> Pair {
        match self.streamed_or_unmarked() {
            Pair(mode, "none") => Pair(mode, "delete"),
            pair => pair,
        }
    }

    pub fn streamed_or_unmarked(&self) -> Pair {
        Pair("replication", self.marks.streamed)
    }

    pub fn polled(&self) -> Pair {
        Pair("polling", self.marks.polled)
    }

    /// The value for this size.
    pub fn pick<T>(&self, gate: T, moderate: T, full: T) -> T {
        match self.size {
            Size::Gate => gate,
            Size::Moderate => moderate,
            Size::Full => full,
        }
    }

    /// Counts one injected fault.
    pub fn ran(&self) {
        self.tally().runs += 1;
    }

    pub fn judged(&self, verdict: &Verdict, duplicates_max: usize) {
        self.tally().count(verdict, duplicates_max);
    }

    /// Notes a criterion that does not hold; the run goes on.
    pub fn require(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.tally().broken.push(what());
        }
    }

    pub fn remark(&self, text: impl Into<String>) {
        let text = text.into();
        let mut tally = self.tally();
        if !tally.remarks.contains(&text) {
            tally.remarks.push(text);
        }
    }

    /// Notes how long something took; nine of ten must be within the limit.
    pub fn took(&self, what: &str, took: Duration, limit: Duration) {
        let mut tally = self.tally();
        tally
            .timings
            .entry(what.to_owned())
            .or_default()
            .note(took, limit);
    }

    /// What was shown, with the times judged.
    pub fn finish(&self) -> Tally {
        let mut tally = self.tally().clone();
        let slack = self
            .pick(GATE_SLACK, Duration::ZERO, Duration::ZERO)
            .as_millis() as u64;
        for (what, timing) in &tally.timings {
            if timing.percentile(90) > timing.limit_ms + slack {
                tally.broken.push(format!("{what}: {timing}"));
            }
        }
        tally
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // A scenario that panicked has counted what it has counted.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a scenario in both modes, side by side.
pub async fn both(scene: &Scene, scenario: impl AsyncFn(&Scene, Pair)) {
    tokio::join!(
        scenario(scene, scene.streamed()),
        scenario(scene, scene.polled())
    );
}

/// `both` for faults that repeat no more without marks than with them.
pub async fn both_or_unmarked(scene: &Scene, scenario: impl AsyncFn(&Scene, Pair)) {
    tokio::join!(
        scenario(scene, scene.streamed_or_unmarked()),
        scenario(scene, scene.polled())
    );
}

/// Runs a scenario as one test, which fails unless everything it showed is well.
pub async fn gate(scenario: impl AsyncFnOnce(&Scene)) {
    let scene = Scene::new(Size::Gate);
    scenario(&scene).await;
    let tally = scene.finish();
    eprintln!("{tally:?}");
    assert!(tally.is_green(), "{}", tally.broken.join("\n"));
}
