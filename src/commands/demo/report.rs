//! What the demo prints: its progress, the table at the end, and the same as JSON.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::judge::Verdict;
use super::latency::Latency;
use super::load::Tally;

/// Examples of what went wrong that are named in the table.
const NAMED_MAX: usize = 3;

/// All that a run found.
pub(crate) struct Report {
    pub verdict: Verdict,
    pub tally: Tally,
    /// How it was run, in a few words each.
    pub mode: &'static str,
    pub broker: String,
    pub writers: usize,
    pub kills: usize,
    pub load: Duration,
    /// Over events that no kill touched.
    pub steady: Option<Latency>,
    /// Over all events.
    pub overall: Option<Latency>,
}

impl Report {
    /// Whether nothing was lost, invented, reordered or changed.
    pub(crate) fn has_passed(&self) -> bool {
        self.verdict.is_clean()
    }

    /// The table for a person.
    pub(crate) fn table(&self) -> String {
        let (verdict, tally) = (&self.verdict, &self.tally);
        let mut text = self.headline();
        let mut row = |name: &str, count: usize, remark: String| {
            let line = format!("  {name:<16}{:>10}  {remark}", grouped(count));
            let _ = writeln!(text, "{}", line.trim_end());
        };
        let committed = format!(
            "events of {} orders in {} transactions, {} of them late",
            grouped(tally.orders),
            grouped(tally.transactions),
            grouped(tally.late)
        );
        row("committed", verdict.committed, committed);
        row(
            "rolled back",
            tally.rolled_back,
            format!(
                "events, {} of them to a savepoint",
                grouped(tally.rolled_back_to_savepoint)
            ),
        );
        row(
            "published",
            verdict.published,
            "of the committed events stand on the broker".into(),
        );
        row("lost", verdict.lost.len(), named(&verdict.lost));
        row("phantom", verdict.phantom, String::new());
        row(
            "out of order",
            verdict.out_of_order.len(),
            named(&verdict.out_of_order),
        );
        row("altered", verdict.altered.len(), named(&verdict.altered));
        let remark = match verdict.duplicated {
            0 => "",
            _ => "records repeated after a kill; the header `id` tells them",
        };
        row("duplicated", verdict.duplicated, remark.into());
        text.push_str(&self.latencies());
        text
    }

    fn headline(&self) -> String {
        format!(
            "\n{} writers for {} s, relay by {} killed with SIGKILL {} times, {}\n\n",
            self.writers,
            self.load.as_secs(),
            self.mode,
            self.kills,
            self.broker,
        )
    }

    /// Latency is from COMMIT's answer at the writer to the record's arrival at a consumer, on one clock.
    fn latencies(&self) -> String {
        let mut text =
            String::from("\n  from COMMIT's answer at the writer to the record at a consumer:\n");
        let rows = [
            ("while it ran", self.steady),
            ("with the kills", self.overall),
        ];
        for (name, latency) in rows {
            let Some(latency) = latency else { continue };
            let _ = writeln!(
                text,
                "  {name:<16}{:>10}  p50,{:>10}  p99   ({} events)",
                millis(latency.p50),
                millis(latency.p99),
                grouped(latency.events),
            );
        }
        text
    }

    /// The same, for a program.
    pub(crate) fn json(&self) -> serde_json::Value {
        let (verdict, tally) = (&self.verdict, &self.tally);
        let latency = |latency: Option<Latency>| {
            latency.map(|latency| {
                serde_json::json!({
                    "events": latency.events,
                    "p50_ms": latency.p50.as_secs_f64() * 1e3,
                    "p99_ms": latency.p99.as_secs_f64() * 1e3,
                    "max_ms": latency.max.as_secs_f64() * 1e3,
                })
            })
        };
        serde_json::json!({
            "passed": self.has_passed(),
            "mode": self.mode,
            "broker": self.broker,
            "writers": self.writers,
            "kills": self.kills,
            "load_seconds": self.load.as_secs_f64(),
            "orders": tally.orders,
            "transactions": tally.transactions,
            "late_transactions": tally.late,
            "committed": verdict.committed,
            "rolled_back": tally.rolled_back,
            "published": verdict.published,
            "lost": verdict.lost.len(),
            "phantom": verdict.phantom,
            "out_of_order": verdict.out_of_order.len(),
            "altered": verdict.altered.len(),
            "duplicated": verdict.duplicated,
            "commit_to_consumer": {
                "while_it_ran": latency(self.steady),
                "with_the_kills": latency(self.overall),
            },
        })
    }
}

/// The three lines that try it on a table of one's own.
pub(crate) const NEXT_STEPS: &str = "
Try it on your own table (config/minimal.toml is a start):
  outboxd migrate --config outboxd.toml   # creates what is missing; --print only shows the SQL
  outboxd check   --config outboxd.toml   # connects to both ends, says what is missing
  outboxd run     --config outboxd.toml
";

/// Says on standard error what the demo is doing: one line that changes, or plain lines where that can't be.
pub(crate) struct Progress {
    is_terminal: bool,
    started_at: Instant,
    said_at: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            started_at: Instant::now(),
            said_at: None,
        }
    }

    /// Begins a step; it stays on the screen.
    pub(crate) fn step(&mut self, text: &str) {
        self.said_at = None;
        self.write(text, true);
    }

    /// Updates the figures; where lines can't change, at most every 2 s.
    pub(crate) fn update(&mut self, text: &str) {
        let is_due = self
            .said_at
            .is_none_or(|at| at.elapsed() >= Duration::from_secs(2));
        if self.is_terminal || is_due {
            self.said_at = Some(Instant::now());
            self.write(text, !self.is_terminal);
        }
    }

    fn write(&self, text: &str, is_whole: bool) {
        let seconds = self.started_at.elapsed().as_secs();
        let (start, end) = match (self.is_terminal, is_whole) {
            (false, _) => ("", "\n"),
            (true, true) => ("\r\x1b[K", "\n"),
            (true, false) => ("\r\x1b[K", ""),
        };
        let mut stderr = std::io::stderr().lock();
        // Nobody may be listening; the demo goes on.
        let _ = write!(stderr, "{start}{seconds:>4} s  {text}{end}").and_then(|()| stderr.flush());
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn named(ids: &[Uuid]) -> String {
    let mut names: Vec<String> = ids.iter().take(NAMED_MAX).map(Uuid::to_string).collect();
    if ids.len() > NAMED_MAX {
        names.push("…".into());
    }
    names.join(", ")
}

fn millis(duration: Duration) -> String {
    match duration.as_millis() {
        0..10 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        whole => format!(
            "{} ms",
            grouped(usize::try_from(whole).unwrap_or(usize::MAX))
        ),
    }
}

/// Writes a count with a comma between thousands.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdict: Verdict) -> Report {
        let second = Duration::from_secs(1);
        let latency = Latency {
            events: 1_200,
            p50: second / 200,
            p99: second,
            max: second,
        };
        Report {
            verdict,
            tally: Tally {
                orders: 400,
                rolled_back: 1_234,
                ..Tally::default()
            },
            mode: "replication",
            broker: "a broker".into(),
            writers: 12,
            kills: 5,
            load: Duration::from_secs(20),
            steady: None,
            overall: Some(latency),
        }
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        let texts = [0, 999, 1_000, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn the_table_names_every_count() {
        let table = report(Verdict {
            committed: 6_001,
            duplicated: 7,
            ..Verdict::default()
        })
        .table();
        for text in [
            "6,001",
            "1,234",
            "lost",
            "phantom",
            "out of order",
            "duplicated",
            "5.0 ms",
            "1,000 ms",
        ] {
            assert!(table.contains(text), "{text} in {table}");
        }
    }

    #[test]
    fn a_loss_fails_and_is_named() {
        let id = Uuid::new_v4();
        let report = report(Verdict {
            committed: 1,
            lost: vec![id],
            ..Verdict::default()
        });
        assert!(!report.has_passed());
        assert!(report.table().contains(&id.to_string()));
        assert_eq!(report.json()["lost"], 1);
    }
}
