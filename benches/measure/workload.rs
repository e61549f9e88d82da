//! What the outbox is filled with before it is drained: one table of all workloads.

use anyhow::Context;

/// Rows of one kind, many of which wait in the outbox.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    pub about: &'static str,
    pub rows: usize,
    pub rows_per_transaction: u32,
    pub aggregates: u32,
    /// Each has a topic.
    pub types: u32,
    /// Smallest and largest row; sizes between them are spread evenly over their orders of magnitude.
    pub row_bytes: (u32, u32),
    /// The share of transactions that are rolled back, whose numbers are missing.
    pub rolled_back: f64,
    /// Measured without `FULL=1` too.
    is_usual: bool,
}

const ONE_ROW: Workload = Workload {
    name: "one-row",
    about: "one-row transactions of 250 B",
    rows: 400_000,
    rows_per_transaction: 1,
    aggregates: 10_000,
    types: 1,
    row_bytes: (250, 250),
    rolled_back: 0.0,
    is_usual: true,
};

pub const WORKLOADS: [Workload; 9] = [
    ONE_ROW,
    Workload {
        name: "thousand-row",
        about: "1,000-row transactions of 250 B",
        rows: 800_000,
        rows_per_transaction: 1_000,
        ..ONE_ROW
    },
    Workload {
        name: "1-kb",
        about: "one-row transactions of 1 KB",
        rows: 250_000,
        row_bytes: (1_000, 1_000),
        ..ONE_ROW
    },
    Workload {
        name: "mixed",
        about: "one-row transactions of 100 B to 64 KB",
        rows: 50_000,
        row_bytes: (100, 64_000),
        is_usual: false,
        ..ONE_ROW
    },
    Workload {
        name: "50-kb",
        about: "one-row transactions of 50 KB",
        rows: 20_000,
        row_bytes: (50_000, 50_000),
        is_usual: false,
        ..ONE_ROW
    },
    Workload {
        name: "spread",
        about: "one-row transactions of 250 B, 50,000 aggregates over 12 partitions",
        aggregates: 50_000,
        is_usual: false,
        ..ONE_ROW
    },
    Workload {
        name: "hot",
        about: "one-row transactions of 250 B, all of one aggregate",
        aggregates: 1,
        is_usual: false,
        ..ONE_ROW
    },
    Workload {
        name: "million",
        about: "one-row transactions of 250 B, each of another aggregate",
        rows: 1_000_000,
        aggregates: 1_000_000,
        is_usual: false,
        ..ONE_ROW
    },
    Workload {
        name: "types",
        about: "one-row transactions of 250 B, of 1,000 aggregate types with a topic each",
        types: 1_000,
        is_usual: false,
        ..ONE_ROW
    },
];

/// What marks are measured with: every seventh number is missing.
pub const MARKED: Workload = Workload {
    name: "marks",
    about: "one-row transactions of 250 B, 15 % more rolled back",
    rows: 100_000,
    rolled_back: 0.15,
    ..ONE_ROW
};

/// What comes on top of an outbox that keeps many rows, fifty times as many.
pub const NEW: Workload = Workload {
    name: "new",
    rows: 200_000,
    ..ONE_ROW
};

/// What such an outbox keeps.
pub fn kept_below(new: &Workload) -> Workload {
    Workload {
        name: "kept",
        about: "1,000-row transactions of 250 B",
        rows: 50 * new.rows,
        rows_per_transaction: 1_000,
        ..*new
    }
}

impl Workload {
    /// The workloads of `names`, separated by commas; the usual ones for none, or all of them.
    pub fn choose(names: Option<&str>, is_full: bool) -> anyhow::Result<Vec<Self>> {
        let Some(names) = names else {
            return Ok(WORKLOADS
                .into_iter()
                .filter(|workload| is_full || workload.is_usual)
                .collect());
        };
        let find = |name: &str| {
            let found = WORKLOADS.into_iter().find(|workload| workload.name == name);
            found.with_context(|| {
                let known = WORKLOADS.map(|workload| workload.name).join(", ");
                format!("no workload is called `{name}`; there are {known}")
            })
        };
        names.split(',').map(find).collect()
    }

    /// The statement that fills the outbox; `PROCEDURE` comes before it.
    pub fn fill(&self) -> String {
        let (smallest, largest) = self.row_bytes;
        format!(
            "CALL fill({}, {}, {}, {}, {smallest}, {largest}, {})",
            self.rows, self.rows_per_transaction, self.aggregates, self.types, self.rolled_back
        )
    }
}

/// Fills the outbox. A row's other columns take 95 bytes, and what is not the note in a payload about 50.
///
/// The note is random digits: PostgreSQL would store a large one that repeats itself in a few bytes.
pub const PROCEDURE: &str = "
    CREATE OR REPLACE PROCEDURE fill(
        rows int, transaction_rows int, aggregates int, types int, smallest int, largest int, rolled_back float)
    LANGUAGE plpgsql AS $$
    DECLARE
        noise text := (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1 + largest / 16));
    BEGIN
        FOR lowest IN 1..rows BY transaction_rows LOOP
            LOOP
                INSERT INTO public.outbox (aggregatetype, aggregateid, type, payload)
                SELECT CASE types WHEN 1 THEN 'order' ELSE 'type-' || version % types END, 'o-' || version % aggregates, 'OrderPlaced',
                    json_build_object('order', version % aggregates, 'version', version, 'note',
                        substr(noise, (random() * largest)::int, greatest(1, row_bytes - 145)))
                FROM generate_series(lowest, least(lowest + transaction_rows - 1, rows)) AS version,
                    LATERAL (SELECT (smallest * (largest::float / smallest) ^ random() + 0 * version)::int AS row_bytes) AS size;
                EXIT WHEN random() >= rolled_back;
                ROLLBACK;
            END LOOP;
            COMMIT;
        END LOOP;
    END $$;";
