//! One relay: it gives each session's machine what happened, carries out what that decides, and keeps what it remembers
//! between two of them. Decides nothing itself.

mod arrival;
mod between_sessions;
mod catalog_check;
mod clock;
mod effects;
mod lag;
mod leave;
pub(crate) mod machine;
mod outage;
mod producer;
mod report;
pub mod session;
pub mod supervise;
pub mod wal_watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Mark};
use crate::core::{Core, Faults, Recorded, ReleaseOn, Window};
use crate::encode::Encoder;
use crate::mark::{FencingToken, Marks, Owed};
use crate::observe::metrics::Metrics;
use crate::observe::status::{State, StatusCell, Timestamp};
use crate::postgres;
use crate::publish::PublisherEvent;
use crate::row::Layout;
use crate::source::Source;
use crate::source::replication::sweep::Watch;
use crate::state::OutboxState;
use crate::state::identity::ServerHistory;
use crate::state::lease::LeaseState;
use crate::state::retention::Retention;
use crate::state::retention::pass::between_passes;
use catalog_check::{CatalogCheck, catalog_check_every};
use clock::Clock;
use effects::Tasks;
use machine::{
    Connection, Effect, Found, Input, LeaseInSight, Looks, Machine, Memory, Moment, Partitioner,
    RemovalTerms, Terms,
};
pub use machine::{End, Phase};
use outage::Outages;
use producer::Producers;

/// How often the core is asked which topics are to be asked for.
const TOPICS_EVERY: Duration = Duration::from_secs(2);
/// How often the ledger is compacted and complete segments are audited.
const MAINTAIN_EVERY: Duration = Duration::from_secs(60);
/// How often the holes that the stream leaves are looked at, unless sweeps come more often.
const HOLES_EVERY: Duration = Duration::from_secs(5);

/// What outlives a session: the rows in flight and the producer that carries them.
pub struct Relay {
    /// With the machine while a session runs.
    memory: Option<Memory>,
    producers: Producers,
    pub metrics: Arc<Metrics>,
    pub status: StatusCell,
    clock: Clock,
    /// Set once we were asked to stop.
    stop_by: Option<Instant>,
    /// How far the server's history was seen; a session that is opened on less of it is refused.
    history: Option<ServerHistory>,
    /// The generation of the numbers in flight.
    generation: Option<i32>,
    /// What the publication keeps from the stream.
    drift: Vec<String>,
    outages: Outages,
    config: Arc<Config>,
}

/// What one session works with.
pub struct Session {
    pub source: Source,
    /// Finds what the stream missed; where rows are marked.
    pub watch: Option<Watch>,
    /// Removes old rows that were sent; where they are not kept for ever.
    pub retention: Option<Retention>,
    pub history: ServerHistory,
    pub phase: Phase,
    /// Rows that stand in the table can be read from it in their order.
    pub order_is_told: bool,
    pub marks: Marks,
    pub layout: Arc<Layout>,
    pub encoder: Encoder,
    pub state: OutboxState,
    /// What is held, as it is recorded.
    pub recorded: Recorded,
    /// Rows whose mark an earlier process owed.
    pub owed: Owed,
    pub token: FencingToken,
    /// The connection that marks.
    pub sql: Arc<postgres::SqlConnection>,
    pub lease: watch::Receiver<LeaseState>,
    pub stop: CancellationToken,
}

impl Relay {
    pub fn new(config: Arc<Config>, metrics: Arc<Metrics>, status: StatusCell) -> Self {
        let partitioner = match config.kafka.allow_partitioner {
            true => Partitioner::Configured,
            false => Partitioner::Murmur2,
        };
        Self {
            memory: Some(Memory::new(core(&config), partitioner, metrics.clone())),
            producers: Producers::new(config.kafka.clone()),
            metrics,
            status,
            clock: Clock::start(),
            stop_by: None,
            history: None,
            generation: None,
            drift: Vec::new(),
            outages: Outages::default(),
            config,
        }
    }

    /// Takes the configuration with the names that the database knows; before the first session.
    pub fn configure(&mut self, config: Arc<Config>) {
        self.config = config;
    }

    /// What is in flight, between two sessions.
    pub(crate) fn memory(&self) -> &Memory {
        self.memory
            .as_ref()
            .expect("a session gives back what it took")
    }

    fn memory_mut(&mut self) -> &mut Memory {
        self.memory
            .as_mut()
            .expect("a session gives back what it took")
    }

    /// Runs one session until it ends.
    ///
    /// Cancel-safe: no.
    pub async fn run(&mut self, session: Session) -> End {
        let mut run = self.begin(session);
        let end = run.until_end_or_overdue().await;
        run.leave(&end).await;
        end
    }

    fn begin(&mut self, session: Session) -> Run<'_> {
        let source = &self.config.source;
        let removal = source.retention.zip(session.retention.as_ref());
        let terms = Terms {
            mark: source.mark,
            mode: source.mode,
            phase: session.phase,
            source: session.source.kind(),
            order_is_told: session.order_is_told,
            layout: session.layout,
            generation: session.state.generation,
            token: session.token,
            shutdown_notices: session.lease.borrow().shutdown_notices,
            sweep_every: source.replication.sweep,
            looks: session.watch.as_ref().map(looks),
            removal: removal.map(|(keep, retention)| RemovalTerms {
                every: between_passes(keep),
                has_partitions: retention.has_partitions(),
            }),
        };
        let found = Found {
            marks: session.marks,
            recorded: session.recorded,
            owed: session.owed,
        };
        let memory = self
            .memory
            .take()
            .expect("a session gives back what it took");
        let delivered_before = memory.delivered_rows;
        Run {
            machine: Machine::begin(memory, terms, found, self.clock.now()),
            relay: self,
            source: session.source,
            watch: session.watch,
            retention: session.retention,
            state: session.state,
            encoder: session.encoder,
            sql: session.sql,
            lease: session.lease,
            stop: session.stop,
            tasks: Tasks::default(),
            catalog_check: None,
            effects: Vec::new(),
            delivered_before,
            ticks: 0,
        }
    }
}

fn core(config: &Config) -> Core {
    let window = Window {
        rows_max: config.limits.in_flight_rows_max,
        bytes_max: config.limits.in_flight_bytes_max,
    };
    let settling = match config.source.mark {
        Mark::None => ReleaseOn::OnConfirmation,
        Mark::Ledger | Mark::SentAt | Mark::Delete => ReleaseOn::OnMark,
    };
    let faults = Faults {
        policy: config.faults.policy,
        halt_share: config.faults.halt_share,
    };
    Core::new(window, settling, faults)
}

fn looks(watch: &Watch) -> Looks {
    match watch {
        Watch::Numbers(_) => Looks::ByNumber,
        Watch::Rows(watch) => Looks::ByMark {
            has_numbers: watch.has_numbers(),
        },
    }
}

/// One running session: its machine, and what carries its effects out.
struct Run<'a> {
    relay: &'a mut Relay,
    machine: Machine,
    source: Source,
    watch: Option<Watch>,
    retention: Option<Retention>,
    state: OutboxState,
    encoder: Encoder,
    sql: Arc<postgres::SqlConnection>,
    lease: watch::Receiver<LeaseState>,
    stop: CancellationToken,
    tasks: Tasks,
    catalog_check: Option<CatalogCheck>,
    /// What the machine wants to be done; kept for its room.
    effects: Vec<Effect>,
    /// What had been acknowledged a tick ago.
    delivered_before: u64,
    /// Seconds that were reported.
    ticks: u32,
}

/// What is done again and again.
struct Timers {
    topics: Interval,
    report: Interval,
    maintain: Interval,
    look: Interval,
    catalog: Interval,
}

impl Timers {
    fn start(config: &Config) -> Self {
        let every = |period| {
            let mut timer = interval(period);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer
        };
        Self {
            topics: every(TOPICS_EVERY),
            report: every(Duration::from_secs(1)),
            maintain: every(MAINTAIN_EVERY),
            look: every(HOLES_EVERY.min(config.source.replication.sweep)),
            catalog: every(catalog_check_every(config)),
        }
    }
}

impl Run<'_> {
    async fn until_end(&mut self) -> End {
        let mut timers = Timers::start(&self.relay.config);
        let mut input = Input::TimePassed;
        loop {
            let end = match input {
                Input::SecondPassed(on) => self.pass_second(on).await,
                input => self.take(input).await,
            };
            if let Some(end) = end {
                return end;
            }
            if self.relay.producers.working().is_none() {
                return End::Producer("the producer did not start".to_owned());
            }
            input = self.next(&mut timers).await;
        }
    }

    /// Waits until something happens.
    async fn next(&mut self, timers: &mut Timers) -> Input {
        let wakes_at = self.machine.wakes_at();
        let wakes_at = wakes_at.map(|reading| self.relay.clock.instant(reading));
        let wants_batch = self.machine.wants_batch(self.source.has_moved_slot());
        let tasks = &mut self.tasks;
        // Reports first: they make room; the source last: it fills it.
        tokio::select! {
            biased;
            () = self.stop.cancelled(), if !self.machine.is_draining() => self.stop_asked(),
            changed = self.lease.changed() => match changed {
                Ok(()) => Input::TimePassed,
                Err(_) => Input::LeaseGone,
            },
            event = self.relay.producers.next_event() => self.told(event),
            result = joined(&mut tasks.marking) => Input::Marked(result, self.connection()),
            result = joined(&mut tasks.recording) => Input::Recorded(result, self.connection()),
            () = sleep_until(wakes_at.unwrap_or_else(far)), if wakes_at.is_some() => Input::TimePassed,
            result = joined(&mut tasks.maintenance) => {
                Input::Maintained(result, self.connection())
            }
            (retention, removal) = joined(&mut tasks.removing) => {
                self.retention = Some(retention);
                Input::Removed(removal)
            }
            (watch, look) = joined(&mut tasks.looking) => {
                self.watch = Some(watch);
                Input::Looked(look)
            }
            findings = joined(&mut self.catalog_check) => self.take_findings(findings),
            answer = joined(&mut tasks.requests) => self.take_requests(answer),
            _ = timers.maintain.tick() => Input::MaintenanceDue,
            _ = timers.look.tick() => Input::LookDue,
            _ = timers.catalog.tick() => {
                self.check_catalog();
                Input::TimePassed
            }
            _ = timers.topics.tick() => Input::TopicsDue,
            _ = timers.report.tick() => Input::SecondPassed(Timestamp::now()),
            batch = self.source.read(), if wants_batch => self.arrived(batch).await,
        }
    }

    /// Lets the machine decide about what happened.
    fn decide(&mut self, input: Input) {
        let epoch = self.machine.terms().token.epoch;
        let lease = self.lease.borrow();
        let lease = LeaseInSight {
            epoch: lease.epoch(),
            may_publish: lease.may_publish(epoch),
            shutdown_notices: lease.shutdown_notices,
        };
        let encoder = &self.encoder;
        let moment = Moment {
            now: self.relay.clock.now(),
            lease,
            has_moved_slot: self.source.has_moved_slot(),
            is_unanswered: self.machine.has_successor() && self.relay.producers.is_unanswered(),
            encode: &|row| encoder.encode(row),
        };
        self.machine.handle(input, &moment, &mut self.effects);
    }

    fn stop_asked(&mut self) -> Input {
        self.relay.status.state(State::Draining, "asked to stop");
        let until = self.relay.stop_by();
        Input::StopAsked {
            until: self.relay.clock.reading(until),
        }
    }

    fn told(&mut self, event: Option<PublisherEvent>) -> Input {
        match event {
            Some(PublisherEvent::Delivered(delivered)) => Input::Delivered(delivered),
            Some(PublisherEvent::Topics(answers)) => Input::TopicsAnswered(answers),
            Some(PublisherEvent::Ended(end)) => {
                self.relay.producers.note_end(&end);
                Input::ProducerEnded(Some(end))
            }
            None => {
                self.relay.producers.lose();
                Input::ProducerEnded(None)
            }
        }
    }

    fn connection(&self) -> Connection {
        match self.sql.client.is_closed() {
            true => Connection::Closed,
            false => Connection::Open,
        }
    }
}

/// Waits for the running task; for ever while none runs.
///
/// Cancel-safe: yes.
async fn joined<T, H>(task: &mut Option<H>) -> T
where
    H: Future<Output = Result<T, tokio::task::JoinError>> + Unpin,
{
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let result = running
        .await
        .expect("a task neither panics nor is aborted while it is awaited");
    *task = None;
    result
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3_600)
}
