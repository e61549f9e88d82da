//! Relays that contend for one lease, and the server that executes their statements.

use std::time::Duration;

use crate::state::lease::{Decision, Holder, LeaseRow, Life, Standby, Version};

/// One relay that contends: what it believes, and the one statement that it waits for.
pub struct Contender {
    pub incarnation: u64,
    pub ttl: Duration,
    pub connection: u64,
    pub part: Part,
    pub asked: Option<Asked>,
}

/// What it believes to be.
pub enum Part {
    Standby(Standby),
    Holder(Holder),
}

/// A statement, and what the server said.
pub struct Asked {
    statement: Statement,
    owner: String,
    sent_at: Duration,
    pub answer: Option<Answer>,
}

#[derive(Clone, Copy)]
pub enum Statement {
    Read,
    Take(Option<Version>, Duration),
    Renew(i64),
    Release,
}

#[derive(Clone)]
pub enum Answer {
    Row(Option<LeaseRow>),
    Epoch(Option<i64>),
    Renewed(bool),
}

impl Contender {
    pub fn new(number: u64, ttl: Duration) -> Self {
        Self {
            incarnation: number * 1000,
            ttl,
            connection: 1,
            part: Part::Standby(Standby::default()),
            asked: None,
        }
    }

    pub fn owner(&self) -> String {
        self.incarnation.to_string()
    }

    pub fn ask(&mut self, statement: Statement, now: Duration) {
        self.asked = Some(Asked {
            statement,
            owner: self.owner(),
            sent_at: now,
            answer: None,
        });
    }

    pub fn send(&mut self, now: Duration) {
        if self.asked.is_none() {
            let statement = match &self.part {
                Part::Standby(_) => Statement::Read,
                Part::Holder(holder) => Statement::Renew(holder.epoch()),
            };
            self.ask(statement, now);
        }
    }

    pub fn turn(&mut self, table: &mut Option<LeaseRow>, now: Duration, dead: &[String]) {
        self.send(now);
        while let Some(asked) = &mut self.asked {
            if asked.answer.is_none() {
                execute(table, asked);
            }
            self.receive(now, dead);
        }
    }

    pub fn receive(&mut self, now: Duration, dead: &[String]) {
        let Some((answer, sent_at)) = self
            .asked
            .as_ref()
            .and_then(|asked| Some((asked.answer.clone()?, asked.sent_at)))
        else {
            return;
        };
        self.asked = None;
        match (&mut self.part, answer) {
            (Part::Standby(standby), Answer::Row(row)) => {
                let is_dead = row.as_ref().is_some_and(|row| dead.contains(&row.owner));
                let life = if is_dead { Life::Dead } else { Life::Unknown };
                if let Decision::Take { expected } =
                    standby.observe(now, row.as_ref(), self.connection, life)
                {
                    self.ask(Statement::Take(expected, self.ttl), now);
                }
            }
            (Part::Standby(_), Answer::Epoch(Some(epoch))) => {
                self.part = Part::Holder(Holder::new(epoch, self.ttl, sent_at));
            }
            (Part::Holder(holder), Answer::Renewed(true)) => holder.renewed(sent_at),
            (Part::Holder(_), Answer::Renewed(false)) => {
                self.part = Part::Standby(Standby::default());
            }
            _ => {}
        }
    }

    /// The epoch that it holds for all it knows.
    pub fn epoch(&self) -> Option<i64> {
        match &self.part {
            Part::Holder(holder) => Some(holder.epoch()),
            Part::Standby(_) => None,
        }
    }

    pub fn publishes(&self, now: Duration) -> bool {
        matches!(&self.part, Part::Holder(holder) if holder.may_publish(now))
    }
}

/// What the server does with a statement, as the SQL says it.
pub fn execute(table: &mut Option<LeaseRow>, asked: &mut Asked) {
    let version = table.as_ref().map(|row| Version {
        epoch: row.epoch,
        renewals: row.renewals,
    });
    let answer = match asked.statement {
        Statement::Read => Answer::Row(table.clone()),
        Statement::Take(expected, ttl) => {
            let epoch = version.map_or(1, |row| row.epoch + 1);
            let matches = version == expected;
            if matches {
                *table = Some(LeaseRow {
                    owner: asked.owner.clone(),
                    epoch,
                    renewals: version.map_or(0, |row| row.renewals + 1),
                    released: false,
                    ttl,
                });
            }
            Answer::Epoch(matches.then_some(epoch))
        }
        Statement::Renew(epoch) => {
            let ours = table
                .as_mut()
                .filter(|row| row.owner == asked.owner && row.epoch == epoch && !row.released);
            Answer::Renewed(ours.map(|row| row.renewals += 1).is_some())
        }
        Statement::Release => {
            if let Some(row) = table.as_mut().filter(|row| row.owner == asked.owner) {
                row.released = true;
            }
            Answer::Renewed(false)
        }
    };
    asked.answer = Some(answer);
}
