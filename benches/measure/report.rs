//! What was measured: sections of lines of figures, each with one value a round; as Markdown and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// One figure of one round: what it is called with its unit, and its value.
pub type Figure = (&'static str, f64);

/// The rounds of one contender.
#[derive(Debug)]
struct Line {
    name: String,
    figures: Vec<(&'static str, Vec<f64>)>,
}

/// Lines that stand in one table.
#[derive(Debug)]
pub struct Section {
    pub name: String,
    about: String,
    lines: Vec<Line>,
}

/// Middle, smallest and largest of the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let (low, high) = ((sorted.len().max(1) - 1) / 2, sorted.len() / 2);
        Some(Self {
            median: (sorted.get(low)? + sorted.get(high)?) / 2.0,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }
}

impl Section {
    pub fn new(name: &str, about: &str) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            lines: Vec::new(),
        }
    }

    /// Adds one round's figures to a line, and says them on standard error.
    pub fn add(&mut self, name: &str, figures: &[Figure]) {
        let said: Vec<String> = figures
            .iter()
            .map(|(figure, value)| format!("{} {figure}", number(*value)))
            .collect();
        eprintln!("{}: {name}: {}", self.name, said.join(", "));
        let line = match self.lines.iter_mut().position(|line| line.name == name) {
            Some(place) => &mut self.lines[place],
            None => {
                let (name, figures) = (name.to_owned(), Vec::new());
                self.lines.push(Line { name, figures });
                self.lines.last_mut().expect("it was pushed just now")
            }
        };
        for (figure, value) in figures {
            match line.figures.iter_mut().find(|(known, _)| known == figure) {
                Some((_, values)) => values.push(*value),
                None => line.figures.push((figure, vec![*value])),
            }
        }
    }

    pub fn spread(&self, line: &str, figure: &str) -> Option<Spread> {
        let line = self.lines.iter().find(|known| known.name == line)?;
        line.spread(figure)
    }

    /// Its table, with a column for each figure that any line has.
    pub fn markdown(&self) -> String {
        let mut lines: Vec<&Line> = self.lines.iter().collect();
        // The line with the most figures gives the order.
        lines.sort_by_key(|line| std::cmp::Reverse(line.figures.len()));
        let mut columns: Vec<&str> = Vec::new();
        for (figure, _) in lines.iter().flat_map(|line| &line.figures) {
            if !columns.contains(figure) {
                columns.push(figure);
            }
        }
        let mut text = format!("### {}\n\n| | {} |\n", self.about, columns.join(" | "));
        let _ = writeln!(text, "|---|{}", "---:|".repeat(columns.len()));
        for line in &self.lines {
            let cells: Vec<String> = columns
                .iter()
                .map(|figure| line.spread(figure).map_or_else(String::new, cell))
                .collect();
            let _ = writeln!(text, "| {} | {} |", line.name, cells.join(" | "));
        }
        text
    }

    pub fn json(&self) -> Value {
        let lines: serde_json::Map<String, Value> = self
            .lines
            .iter()
            .map(|line| (line.name.clone(), line.json()))
            .collect();
        json!({ "about": self.about, "lines": lines })
    }
}

impl Line {
    fn spread(&self, figure: &str) -> Option<Spread> {
        let (_, values) = self.figures.iter().find(|(known, _)| *known == figure)?;
        Spread::of(values)
    }

    fn json(&self) -> Value {
        let figure = |(name, values): &(&'static str, Vec<f64>)| {
            let spread = Spread::of(values)?;
            let value = json!({
                "median": spread.median, "min": spread.min, "max": spread.max, "rounds": values,
            });
            Some(((*name).to_owned(), value))
        };
        Value::Object(self.figures.iter().filter_map(figure).collect())
    }
}

/// The median, and what the rounds lay between where that is not the same.
fn cell(spread: Spread) -> String {
    let median = number(spread.median);
    match spread.min < spread.max {
        true => format!("{median} ({}–{})", number(spread.min), number(spread.max)),
        false => median,
    }
}

/// A number with three digits at least, and no more behind the point than that takes.
pub fn number(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}
