//! What one row of the matrix has shown: counted by the oracle, and the row's own criteria.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::harness::oracle::Verdict;

/// Sums over all runs of a row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Faults that were injected.
    pub runs: usize,
    pub committed: usize,
    pub lost: usize,
    pub phantom: usize,
    pub out_of_order: usize,
    /// Records with a wrong value, key or partition.
    pub wrong: usize,
    pub duplicates: usize,
    pub duplicates_max: usize,
    /// Criteria that did not hold, in words.
    pub broken: Vec<String>,
    pub remarks: Vec<String>,
    pub timings: BTreeMap<String, Timing>,
}

/// How long something took, each time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Timing {
    pub limit_ms: u64,
    pub took_ms: Vec<u64>,
}

impl Tally {
    pub fn is_green(&self) -> bool {
        let faults = self.lost + self.phantom + self.out_of_order + self.wrong;
        faults == 0 && self.duplicates <= self.duplicates_max && self.broken.is_empty()
    }

    pub fn count(&mut self, verdict: &Verdict, duplicates_max: usize) {
        self.committed += verdict.committed;
        self.lost += verdict.lost.len();
        self.phantom += verdict.phantom.len();
        self.out_of_order += verdict.out_of_order.len();
        self.wrong += verdict.wrong.len();
        self.duplicates += verdict.duplicates;
        self.duplicates_max = self.duplicates_max.saturating_add(duplicates_max);
        let is_clean = verdict.faults() == 0 && verdict.duplicates <= duplicates_max;
        if !is_clean {
            self.broken
                .push(format!("at most {duplicates_max} duplicates\n{verdict}"));
        }
    }

    /// Joins what a further run of the same row has shown.
    pub fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.committed += other.committed;
        self.lost += other.lost;
        self.phantom += other.phantom;
        self.out_of_order += other.out_of_order;
        self.wrong += other.wrong;
        self.duplicates += other.duplicates;
        self.duplicates_max = self.duplicates_max.saturating_add(other.duplicates_max);
        self.broken.extend(other.broken);
        for remark in other.remarks {
            if !self.remarks.contains(&remark) {
                self.remarks.push(remark);
            }
        }
        for (what, timing) in other.timings {
            let own = self.timings.entry(what).or_default();
            own.limit_ms = timing.limit_ms;
            own.took_ms.extend(timing.took_ms);
        }
    }
}

impl Timing {
    pub fn note(&mut self, took: Duration, limit: Duration) {
        self.limit_ms = limit.as_millis() as u64;
        self.took_ms.push(took.as_millis() as u64);
    }

    /// The time that so many of a hundred did not exceed.
    pub fn percentile(&self, percent: usize) -> u64 {
        let mut sorted = self.took_ms.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(index).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |ms: u64| ms as f64 / 1_000.0;
        let (median, slowest) = (seconds(self.percentile(50)), seconds(self.percentile(100)));
        write!(
            f,
            "median {median:.1} s, slowest {slowest:.1} s, limit {:.0} s",
            seconds(self.limit_ms)
        )
    }
}
