//! What the relay is to reach, and whether the figures say that it does.

use serde_json::{Value, json};

use crate::contender::{Contender, Mode, Transport};
use crate::report::{Section, number};
use crate::{commits, drain, idle, kept, latency, marks, soak};

/// What a line that was not measured asks for.
const UNMEASURED: &str = "What was not measured here: `PEERS=1` measures Debezium Server too, `FULL=1` how costs grow, \
    `SOAK=1` half an hour.";

/// One figure to reach; the medians of the rounds decide.
struct Claim {
    what: &'static str,
    bound: Bound,
    found: fn(&Found<'_>) -> Option<f64>,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64, &'static str),
    AtMost(f64, &'static str),
}

/// Everything that was measured.
struct Found<'a>(&'a [Section]);

const RECEIVE_TCP: Contender = Contender::Receive(Transport::Tcp);
const RECEIVE_UNIX: Contender = Contender::Receive(Transport::Unix);
const STREAM_TCP: Contender = Contender::Relay(Mode::Replication, Transport::Tcp);
const STREAM_UNIX: Contender = Contender::Relay(Mode::Replication, Transport::Unix);
const CATCH_UP: Contender = Contender::Relay(Mode::CatchUp, Transport::Tcp);
const POLLING: Contender = Contender::Relay(Mode::Polling, Transport::Tcp);

const DEBEZIUM: Contender = Contender::Debezium;

/// A cost that grows no more than this is flat.
const FLAT: f64 = 1.1;
/// What rounds of the same differ by is no change.
const SAME: f64 = 0.97;
const TIMES: &str = "×";
const MICROS: &str = " µs a row";
const MILLIS: &str = " ms";
const MB: &str = " MB";

const CLAIMS: [Claim; 41] = [
    Claim {
        what: "replication over a unix socket beside `pg_recvlogical`, one-row transactions of 250 B",
        bound: Bound::AtLeast(0.95, TIMES),
        found: |found| found.ratio("one-row", STREAM_UNIX, RECEIVE_UNIX),
    },
    Claim {
        what: "the same, 1 KB",
        bound: Bound::AtLeast(0.95, TIMES),
        found: |found| found.ratio("1-kb", STREAM_UNIX, RECEIVE_UNIX),
    },
    Claim {
        what: "replication over TCP beside `pg_recvlogical`, one-row transactions",
        bound: Bound::AtLeast(1.8, TIMES),
        found: |found| found.ratio("one-row", STREAM_TCP, RECEIVE_TCP),
    },
    Claim {
        what: "the same, 1,000-row transactions",
        bound: Bound::AtLeast(1.4, TIMES),
        found: |found| found.ratio("thousand-row", STREAM_TCP, RECEIVE_TCP),
    },
    Claim {
        what: "polling beside its SELECTs alone",
        bound: Bound::AtLeast(0.8, TIMES),
        found: |found| found.ratio("one-row", POLLING, Contender::Select),
    },
    Claim {
        what: "polling beside `pg_recvlogical` over TCP, one-row transactions",
        bound: Bound::AtLeast(6.0, TIMES),
        found: |found| found.ratio("one-row", POLLING, RECEIVE_TCP),
    },
    Claim {
        what: "reading rows that existed before the slot beside `pg_recvlogical` over TCP, one-row transactions",
        bound: Bound::AtLeast(4.0, TIMES),
        found: |found| found.ratio("one-row", CATCH_UP, RECEIVE_TCP),
    },
    Claim {
        what: "replication over TCP beside Debezium Server, one-row transactions",
        bound: Bound::AtLeast(2.2, TIMES),
        found: |found| found.ratio("one-row", STREAM_TCP, DEBEZIUM),
    },
    Claim {
        what: "the same, 1,000-row transactions",
        bound: Bound::AtLeast(3.0, TIMES),
        found: |found| found.ratio("thousand-row", STREAM_TCP, DEBEZIUM),
    },
    Claim {
        what: "polling beside Debezium Server, one-row transactions",
        bound: Bound::AtLeast(8.0, TIMES),
        found: |found| found.ratio("one-row", POLLING, DEBEZIUM),
    },
    Claim {
        what: "reading rows that existed before the slot beside Debezium Server, one-row transactions",
        bound: Bound::AtLeast(5.0, TIMES),
        found: |found| found.ratio("one-row", CATCH_UP, DEBEZIUM),
    },
    Claim {
        what: "CPU a row by replication beside Debezium Server, one-row transactions",
        bound: Bound::AtMost(1.0 / 8.0, TIMES),
        found: |found| found.ratio_of(drain::CPU, STREAM_TCP, DEBEZIUM),
    },
    Claim {
        what: "memory by replication beside Debezium Server, one-row transactions",
        bound: Bound::AtMost(1.0 / 25.0, TIMES),
        found: |found| found.ratio_of(drain::PEAK, STREAM_TCP, DEBEZIUM),
    },
    Claim {
        what: "WAL of the ledger with 15 % rolled back",
        bound: Bound::AtMost(2.0, " B a row"),
        found: |found| found.median(marks::SECTION, "ledger", drain::WAL),
    },
    Claim {
        what: "`sent_at` beside its statement alone",
        bound: Bound::AtLeast(0.8, TIMES),
        found: |found| found.mark_ratio("sent_at"),
    },
    Claim {
        what: "`delete` beside its statement alone",
        bound: Bound::AtLeast(0.8, TIMES),
        found: |found| found.mark_ratio("delete"),
    },
    Claim {
        what: "CPU by replication, one-row transactions over TCP",
        bound: Bound::AtMost(4.0, MICROS),
        found: |found| found.drained("one-row", STREAM_TCP, drain::CPU),
    },
    Claim {
        what: "CPU by replication, 1,000-row transactions over TCP",
        bound: Bound::AtMost(2.5, MICROS),
        found: |found| found.drained("thousand-row", STREAM_TCP, drain::CPU),
    },
    Claim {
        what: "CPU by polling",
        bound: Bound::AtMost(2.0, MICROS),
        found: |found| found.drained("one-row", POLLING, drain::CPU),
    },
    Claim {
        what: "CPU by reading rows that existed before the slot",
        bound: Bound::AtMost(2.0, MICROS),
        found: |found| found.drained("one-row", CATCH_UP, drain::CPU),
    },
    Claim {
        what: "memory by replication at full speed",
        bound: Bound::AtMost(40.0, MB),
        found: |found| found.drained("one-row", STREAM_TCP, drain::PEAK),
    },
    Claim {
        what: "memory by polling at full speed",
        bound: Bound::AtMost(40.0, MB),
        found: |found| found.drained("one-row", POLLING, drain::PEAK),
    },
    Claim {
        what: "latency by replication at 500 rows/s, p50",
        bound: Bound::AtMost(2.0, MILLIS),
        found: |found| found.latency(STREAM_TCP, 500, latency::P50),
    },
    Claim {
        what: "the same, p99",
        bound: Bound::AtMost(5.0, MILLIS),
        found: |found| found.latency(STREAM_TCP, 500, latency::P99),
    },
    Claim {
        what: "latency by replication at 2,000 rows/s, p50",
        bound: Bound::AtMost(2.0, MILLIS),
        found: |found| found.latency(STREAM_TCP, 2_000, latency::P50),
    },
    Claim {
        what: "the same, p99",
        bound: Bound::AtMost(5.0, MILLIS),
        found: |found| found.latency(STREAM_TCP, 2_000, latency::P99),
    },
    Claim {
        what: "latency by polling every 100 ms at 500 rows/s, p99",
        bound: Bound::AtMost(115.0, MILLIS),
        found: |found| found.latency(POLLING, 500, latency::P99),
    },
    Claim {
        what: "the same at 2,000 rows/s",
        bound: Bound::AtMost(115.0, MILLIS),
        found: |found| found.latency(POLLING, 2_000, latency::P99),
    },
    Claim {
        what: "CPU a row by replication with a million aggregates beside one",
        bound: Bound::AtMost(FLAT, TIMES),
        found: |found| found.growth(STREAM_TCP),
    },
    Claim {
        what: "the same by polling",
        bound: Bound::AtMost(FLAT, TIMES),
        found: |found| found.growth(POLLING),
    },
    Claim {
        what: "CPU a row by replication with 1,000 aggregate types, a topic each, beside one",
        bound: Bound::AtMost(FLAT, TIMES),
        found: |found| found.growth_of_types(STREAM_TCP),
    },
    Claim {
        what: "the same by polling",
        bound: Bound::AtMost(FLAT, TIMES),
        found: |found| found.growth_of_types(POLLING),
    },
    Claim {
        what: "CPU a row of relay and backend by polling, in a table of ten million kept rows beside one of none, ledger",
        bound: Bound::AtMost(FLAT, TIMES),
        found: |found| found.growth_of_table("ledger"),
    },
    Claim {
        what: "the same, `sent_at`",
        bound: Bound::AtMost(FLAT, TIMES),
        found: |found| found.growth_of_table("sent_at"),
    },
    Claim {
        what: "memory after half an hour of 2,000 rows/s beside after three minutes, the worst mark",
        bound: Bound::AtMost(FLAT, TIMES),
        found: |found| found.growth_of_memory(),
    },
    Claim {
        what: "the application's commits beside replication, against a slot that `pg_recvlogical` reads",
        bound: Bound::AtLeast(SAME, TIMES),
        found: |found| found.commits(&STREAM_TCP.name(), &RECEIVE_TCP.name()),
    },
    Claim {
        what: "the application's commits beside polling, against no reader",
        bound: Bound::AtLeast(SAME, TIMES),
        found: |found| found.commits(&POLLING.name(), commits::ALONE),
    },
    Claim {
        what: "idle CPU, the dearer mode",
        bound: Bound::AtMost(0.3, " % of a core"),
        found: |found| found.dearer(idle::CPU),
    },
    Claim {
        what: "idle memory, the dearer mode",
        bound: Bound::AtMost(20.0, MB),
        found: |found| found.dearer(idle::RESIDENT),
    },
    Claim {
        what: "start to first record, the slower mode",
        bound: Bound::AtMost(300.0, MILLIS),
        found: |found| found.dearer(idle::FIRST),
    },
    Claim {
        what: "stripped release binary",
        bound: Bound::AtMost(15.0, " MB"),
        found: |found| found.median(idle::SECTION, idle::BINARY, idle::MB),
    },
];

impl Found<'_> {
    fn median(&self, section: &str, line: &str, figure: &str) -> Option<f64> {
        let section = self.0.iter().find(|known| known.name == section)?;
        Some(section.spread(line, figure)?.median)
    }

    fn drained(&self, workload: &str, contender: Contender, figure: &str) -> Option<f64> {
        self.median(workload, &contender.name(), figure)
    }

    fn ratio(&self, workload: &str, contender: Contender, floor: Contender) -> Option<f64> {
        let speed = |contender| self.drained(workload, contender, drain::ROWS_PER_SECOND);
        Some(speed(contender)? / speed(floor)?)
    }

    fn ratio_of(&self, figure: &str, contender: Contender, peer: Contender) -> Option<f64> {
        let of = |contender| self.drained("one-row", contender, figure);
        Some(of(contender)? / of(peer)?)
    }

    fn growth(&self, contender: Contender) -> Option<f64> {
        let of = |workload| self.drained(workload, contender, drain::CPU);
        Some(of("million")? / of("hot")?)
    }

    fn growth_of_types(&self, contender: Contender) -> Option<f64> {
        let of = |workload| self.drained(workload, contender, drain::CPU);
        Some(of("types")? / of("one-row")?)
    }

    /// What rows cost the relay and its backend together: indexes that are not used show in the backend.
    fn growth_of_table(&self, mark: &str) -> Option<f64> {
        let of = |is_full| {
            let figure = |name| self.median(kept::SECTION, &kept::line(mark, is_full), name);
            Some(figure(drain::CPU)? + figure(drain::BACKEND)?)
        };
        Some(of(true)? / of(false)?)
    }

    fn growth_of_memory(&self) -> Option<f64> {
        let of = |kind: soak::Kind| {
            let figure = |name| self.median(soak::SECTION, &kind.line(), name);
            Some(figure(soak::LATE)? / figure(soak::EARLY)?)
        };
        soak::KINDS.into_iter().filter_map(of).reduce(f64::max)
    }

    fn mark_ratio(&self, mark: &str) -> Option<f64> {
        let speed = |line: &str| self.median(marks::SECTION, line, marks::MARKED_PER_SECOND);
        Some(speed(mark)? / speed(&marks::alone(mark))?)
    }

    fn latency(&self, contender: Contender, rate: u32, figure: &str) -> Option<f64> {
        self.median(
            latency::SECTION,
            &latency::line(Some(contender), rate),
            figure,
        )
    }

    fn commits(&self, beside: &str, against: &str) -> Option<f64> {
        let of = |line| self.median(commits::SECTION, line, commits::COMMITS_PER_SECOND);
        Some(of(beside)? / of(against)?)
    }

    fn dearer(&self, figure: &str) -> Option<f64> {
        let of = |mode: Mode| self.median(idle::SECTION, mode.name(), figure);
        Some(of(Mode::Replication)?.max(of(Mode::Polling)?))
    }
}

impl Bound {
    fn holds(self, found: f64) -> bool {
        match self {
            Self::AtLeast(least, _) => found >= least,
            Self::AtMost(most, _) => found <= most,
        }
    }

    fn limit(self) -> f64 {
        let (Self::AtLeast(limit, _) | Self::AtMost(limit, _)) = self;
        limit
    }

    fn unit(self) -> &'static str {
        let (Self::AtLeast(_, unit) | Self::AtMost(_, unit)) = self;
        unit
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least, unit) => format!("≥ {}{unit}", number(least)),
            Self::AtMost(most, unit) => format!("≤ {}{unit}", number(most)),
        }
    }
}

/// The table of what holds.
pub fn markdown(sections: &[Section]) -> String {
    let found = Found(sections);
    let line = |claim: &Claim| {
        let (value, verdict) = match (claim.found)(&found) {
            None => (String::new(), "not measured"),
            Some(value) if claim.bound.holds(value) => (said(claim, value), "holds"),
            Some(value) => (said(claim, value), "**does not hold**"),
        };
        let (what, wanted) = (claim.what, claim.bound.text());
        format!("| {what} | {wanted} | {value} | {verdict} |\n")
    };
    let lines: String = CLAIMS.iter().map(line).collect();
    format!(
        "### What holds\n\n| | wanted | found | |\n|---|---:|---:|---|\n{lines}\n{UNMEASURED}\n"
    )
}

pub fn json(sections: &[Section]) -> Value {
    let found = Found(sections);
    let line = |claim: &Claim| {
        let value = (claim.found)(&found);
        json!({
            "what": claim.what,
            "wanted": claim.bound.text(),
            "found": value,
            "holds": value.map(|value| claim.bound.holds(value)),
        })
    };
    CLAIMS.iter().map(line).collect()
}

/// A value; one that misses its bound by less than its digits show has one more.
fn said(claim: &Claim, value: f64) -> String {
    let (bound, usual) = (claim.bound, number(value));
    let is_hidden = !bound.holds(value) && usual == number(bound.limit());
    let text = if is_hidden {
        format!("{value:.3}")
    } else {
        usual
    };
    format!("{text}{}", bound.unit())
}
