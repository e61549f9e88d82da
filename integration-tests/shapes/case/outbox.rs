//! What one outbox of a case goes through.

use super::*;

impl Outbox {
    pub(super) async fn new(
        case: Case,
        index: usize,
        table: &str,
        database: Database,
        kafka: &'static Kafka,
    ) -> Result<Self, String> {
        let shape = &case.shape;
        let topics = Kafka::unique_name("shape");
        for kind in KINDS {
            let topic = format!("{topics}.{kind}");
            kafka.create_topic(&topic, PARTITIONS, &[]).await;
        }
        let names = KINDS.map(|kind| format!("{topics}.{kind}"));
        let called = Names {
            index,
            table,
            topics: &topics,
        };
        let config = configuration(&case, &called, &database, kafka);
        let mut writer = Writer::open(&database.url, *shape, table).await;
        if shape.made == Made::ByHand {
            let owner = match shape.role {
                Role::Owner(_) => format!(
                    "GRANT ALL ON SCHEMA public TO {0}; SET ROLE {0};",
                    database.name
                ),
                _ => String::new(),
            };
            let create = shape.create(table);
            writer.run(&format!("{owner} {create}; RESET ROLE")).await?;
            fill(&case, &mut writer).await?;
        }
        Ok(Self {
            case,
            table: table.to_owned(),
            database,
            config,
            writer,
            relay: None,
            reader: kafka.reader(&[&names[0], &names[1]]),
            sends_again: false,
        })
    }

    /// Whether `migrate` has to make the table: the file is not refused.
    pub(super) fn should_be_made(&self, refusal: &Refusal) -> bool {
        self.case.shape.made != Made::ByHand && !refusal.is_file
    }

    /// `outboxd migrate` as its owner runs it.
    pub fn migrate(&self) -> Result<(), String> {
        let shape = &self.case.shape;
        let mut arguments = vec!["migrate"];
        if let Made::ByMigrate(more) = shape.made {
            arguments.extend(more);
        }
        let mut config = self.config.clone();
        if let Role::Least(_) = shape.role {
            arguments.extend(["--relay-role", &self.database.name]);
            config = config.set("source.url", self.database.url.as_str());
        }
        let done = config.outboxd(&arguments);
        match done.status.success() {
            true => Ok(()),
            false => Err(said(&done)),
        }
    }

    /// Old rows of a table that `migrate` has made, and what its owner does to it.
    pub async fn once_migrated(&mut self) -> Result<(), String> {
        let sql = filled(self.case.shape.once_migrated, &self.table);
        self.writer.run(&sql).await?;
        if self.case.shape.made != Made::ByHand {
            fill(&self.case, &mut self.writer).await?;
        }
        Ok(())
    }

    pub fn start(&mut self) {
        self.relay = Some(Relay::start(&self.config));
    }

    /// Stops the relay, which must end well.
    pub fn stop(&mut self) -> Result<(), String> {
        let Some(mut relay) = self.relay.take() else {
            return Ok(());
        };
        let status = tokio::task::block_in_place(|| relay.terminate());
        match status.success() {
            true => Ok(()),
            false => Err(format!("the relay ended with {status}")),
        }
    }

    /// The end of what the relay logged.
    pub fn log_tail(&self) -> String {
        let log = self.relay.as_ref().map(Relay::log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Rows behind one that can't be marked wait for a person: nobody waits for them, where `check` warned of it.
    async fn excuse_unmarkable(&mut self, missing: &[u64]) -> Result<(), String> {
        let sql = "SELECT aggregatetype || ' ' || aggregateid AS id FROM outboxd.blocked \
                   WHERE kind = 'aggregate' AND reason = 'mark'";
        let blocked = self.writer.ids(sql).await?;
        if blocked.is_empty() || !check::warns(&self.config, "and blocks its aggregate")? {
            return Ok(());
        }
        for event in &mut self.writer.events {
            let (kind, aggregate) = event.aggregate();
            if missing.contains(&event.number) && blocked.contains(&format!("{kind} {aggregate}")) {
                event.wanted = Wanted::Perhaps;
            }
        }
        Ok(())
    }

    /// Waits until every row is in Kafka that has to be; an error when nothing more comes.
    pub async fn await_published(&mut self) -> Result<(), String> {
        let (mut fewest, mut changed_at) = (usize::MAX, Instant::now());
        loop {
            let reads = tokio::task::block_in_place(|| self.reader.read_to_end());
            let missing = judge::missing(&self.writer.events, reads);
            let missing: Vec<u64> = missing.iter().map(|event| event.number).collect();
            if !missing.is_empty() && changed_at.elapsed() > EXCUSED_AFTER {
                self.excuse_unmarkable(&missing).await?;
            }
            if missing.len() < fewest {
                (fewest, changed_at) = (missing.len(), Instant::now());
            }
            if fewest == 0 {
                return Ok(());
            }
            if changed_at.elapsed() > STILL_MAX {
                let status = self.relay.as_ref().map(Relay::try_status);
                let told = status.map(|status| match status {
                    Ok(status) => format!("{} {}", status["state"], status["reason"]),
                    Err(error) => error,
                });
                let (table, tail) = (&self.table, self.log_tail());
                let first = &missing[..missing.len().min(5)];
                return Err(format!(
                    "{fewest} rows of {table} do not come, the first {first:?}; status {told:?}; log: {tail}"
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What is wrong with the records that there are.
    pub(super) fn verdict(&mut self, is_halted: bool) -> Vec<String> {
        tokio::task::block_in_place(|| self.reader.read_to_end());
        let config = &self.config;
        let log = Log {
            shape: &self.case.shape,
            reads: self.reader.reads(),
            partitions: self.reader.partitions(),
            topic_of: &|kind| config.topic_of(kind),
        };
        let mut verdict = judge::judge(&self.writer.events, &log);
        // Without marks the position is all that is known, and it may not have arrived.
        let is_position_all = self.case.pair.mark == "none" && self.case.is_cut();
        if is_position_all || self.sends_again {
            verdict = verdict.but_repeated();
        }
        match is_halted {
            true => verdict.but_lost().lines(),
            false => verdict.lines(),
        }
    }
}
