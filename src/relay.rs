//! One session: rows go down from the source to the producer, reports come back, marks and
//! confirmations follow. Executes what the core says and decides nothing about order.

pub(crate) mod batch_cursor;
mod between_sessions;
mod catalog_check;
mod end;
mod feed;
mod handed_over;
pub(crate) mod hold_writer;
mod lag;
mod marking;
mod metadata_refresh;
mod outage;
pub(crate) mod paid;
mod producer;
mod read_before;
mod removal;
mod report;
pub mod session;
mod stall_detector;
pub mod supervise;
mod sweep;
mod topics;
pub mod wal_watch;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, KafkaConfig};
use crate::core::{Core, Faults, Recorded, Window};
use crate::core::{Cutting, SmallBatches, Ticket, TopicPartition};
use crate::encode::{Encoder, Record, Rejection};
use crate::mark::{FencingToken, MarkError, Marks, Owed};
use crate::observe::metrics::Metrics;
use crate::observe::status::StatusCell;
use crate::postgres;
use crate::publish::PublisherEvent;
use crate::row::{Layout, OutboxRow};
use crate::source::Source;
use crate::source::replication::sweep::Watch;
use crate::state::OutboxState;
use crate::state::hold::{Replayed, Requests};
use crate::state::identity::ServerHistory;
use crate::state::lease::LeaseState;
use crate::state::retention::Retention;
use batch_cursor::BatchCursor;
use catalog_check::{CatalogCheck, catalog_check_every};
pub use end::{End, Phase};
use handed_over::HandedOver;
use hold_writer::HoldWriter;
use marking::{Failing, Finding, Marking, Owing, finished, joined};
use outage::Outages;
use producer::{Producer, Successor};
pub(crate) use read_before::ReadBefore;
use removal::Removal;
use stall_detector::StallDetector;
use sweep::{Reread, Sweep};

/// How often the core is asked which topics are to be asked for.
const TOPICS_EVERY: Duration = Duration::from_secs(2);
/// How often the ledger is compacted and complete segments are audited.
const MAINTAIN_EVERY: Duration = Duration::from_secs(60);

/// What outlives a session: the rows in flight and the producer that carries them.
pub struct Relay {
    pub core: Core,
    pub metrics: Arc<Metrics>,
    pub status: StatusCell,
    /// Rows that Kafka acknowledged.
    pub delivered_rows: u64,
    producer: Option<Producer>,
    /// The row that the producer has said nothing of for long.
    silent: Option<Ticket>,
    /// Since when a partition has no leader, until its rows in flight are given up.
    leaderless_since: Option<Instant>,
    /// What the catch-up read where nothing is marked, for the stream brings some of it again.
    read_before: ReadBefore,
    replayed: Replayed,
    /// Set once we were asked to stop.
    stop_by: Option<Instant>,
    /// The rows for which the table was read last.
    reread: Reread,
    /// How far the server's history was seen; a session that is opened on less of it is refused.
    history: Option<ServerHistory>,
    /// The generation of the numbers in flight.
    generation: Option<i32>,
    /// What the publication keeps from the stream.
    drift: Vec<String>,
    outages: Outages,
    stalls: StallDetector,
    /// How Kafka is reached, with what was learned of its topics.
    kafka: KafkaConfig,
    /// What the last producer said of a broker.
    cutting: Option<Cutting>,
    /// Topics that take no larger batches.
    small_batches: SmallBatches,
    /// Of the topics that were found.
    partitions: HashMap<Arc<str>, usize>,
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
        let window = Window {
            rows_max: config.limits.in_flight_rows_max,
            bytes_max: config.limits.in_flight_bytes_max,
        };
        let settling = match config.source.mark {
            crate::config::Mark::None => crate::core::ReleaseOn::OnConfirmation,
            _ => crate::core::ReleaseOn::OnMark,
        };
        let faults = Faults {
            policy: config.faults.policy,
            halt_share: config.faults.halt_share,
        };
        Self {
            core: Core::new(window, settling, faults),
            metrics,
            status,
            delivered_rows: 0,
            producer: None,
            silent: None,
            leaderless_since: None,
            read_before: ReadBefore::default(),
            replayed: Replayed::default(),
            stop_by: None,
            reread: Reread::default(),
            history: None,
            generation: None,
            drift: Vec::new(),
            outages: Outages::default(),
            stalls: StallDetector::default(),
            kafka: config.kafka.clone(),
            cutting: None,
            small_batches: SmallBatches::new(),
            partitions: HashMap::new(),
            config,
        }
    }

    /// Takes the configuration with the names that the database knows; before the first session.
    pub fn configure(&mut self, config: Arc<Config>) {
        self.config = config;
    }

    /// Takes the entries of the copies that were replayed and marked, however their session ended.
    pub fn take_replayed(&mut self) -> Vec<i64> {
        self.replayed.take_marked()
    }

    /// Runs one session until it ends.
    ///
    /// Cancel-safe: no.
    pub async fn run(&mut self, mut session: Session) -> End {
        let recorded = std::mem::take(&mut session.recorded);
        if let Phase::Replay(copies) = &session.phase {
            self.replayed.begin(copies);
        }
        let hold_writer = HoldWriter::new(recorded.kept_bytes);
        self.core.restore(recorded);
        let owing = Owing::new(std::mem::take(&mut session.owed));
        let shutdown_notices = session.lease.borrow().shutdown_notices;
        let sweep_every = self.config.source.replication.sweep;
        let removal = Removal::new(self.config.source.retention);
        let mut run = Run {
            relay: self,
            feed: BatchCursor::default(),
            marking: None,
            owing,
            failing: None,
            hold_writer,
            mark_again_at: None,
            last_mark_at: Instant::now(),
            unmarked_since: None,
            delivered_before: 0,
            drain_until: None,
            maintenance: None,
            sweep: Sweep::new(sweep_every),
            removal,
            catalog_check: None,
            top: i64::MIN,
            lag_question: None,
            requests: None,
            successor: None,
            leaderless: Vec::new(),
            has_lost_leader: false,
            shutdown_notices,
            handed_over: HandedOver::default(),
            ticks: 0,
            asking: HashMap::new(),
            waits_for_answer: None,
            session,
        };
        run.note_leaderless();
        let end = run.until_end_or_overdue().await;
        run.leave(&end).await;
        end
    }
}

/// The state of one running session.
struct Run<'a> {
    relay: &'a mut Relay,
    session: Session,
    feed: BatchCursor<Result<Record, Rejection>>,
    marking: Option<Marking>,
    owing: Owing,
    /// Since when no mark succeeds, and why.
    failing: Option<Failing>,
    hold_writer: HoldWriter,
    mark_again_at: Option<Instant>,
    last_mark_at: Instant,
    unmarked_since: Option<Instant>,
    /// What had been acknowledged a tick ago.
    delivered_before: u64,
    /// Set while we stop: everything in flight is settled until then.
    drain_until: Option<Instant>,
    maintenance: Option<JoinHandle<Result<Vec<Finding>, MarkError>>>,
    sweep: Sweep,
    removal: Removal,
    catalog_check: Option<CatalogCheck>,
    /// The highest number that the stream has brought.
    top: i64,
    lag_question: Option<JoinHandle<()>>,
    /// Whether somebody asked for a release or a replay.
    requests: Option<JoinHandle<Result<Requests, MarkError>>>,
    /// How often PostgreSQL had said that it stops when the session began.
    shutdown_notices: u64,
    /// Waits for the producer to finish what is in flight.
    successor: Option<Successor>,
    /// Partitions whose rows are held.
    leaderless: Vec<TopicPartition>,
    /// A partition has lost its leader, and rows in flight wait.
    has_lost_leader: bool,
    handed_over: HandedOver,
    ticks: u32,
    /// Rows that wait to hear whether their topic can be written, and the records they are to become.
    asking: HashMap<Ticket, (OutboxRow, Record)>,
    /// The first of them, and since when it is.
    waits_for_answer: Option<(Ticket, Instant)>,
}

impl Run<'_> {
    #[expect(
        clippy::too_many_lines,
        reason = "one select names all that a session waits for"
    )]
    async fn until_end(&mut self) -> End {
        let mut topics = interval(TOPICS_EVERY);
        let mut report = interval(Duration::from_secs(1));
        let mut maintain = interval(MAINTAIN_EVERY);
        let mut look = interval(self.sweep.look_every());
        let mut catalog = interval(catalog_check_every(&self.relay.config));
        for timer in [
            &mut topics,
            &mut report,
            &mut maintain,
            &mut look,
            &mut catalog,
        ] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            if let Some(end) = self.succeed().await {
                return end;
            }
            if let Some(end) = self.turn() {
                return end;
            }
            let (mark_at, wants_batch) = (self.mark_due_at(), self.wants_batch());
            let Some(producer) = self.relay.producer.as_mut() else {
                return End::Producer("the producer did not start".to_owned());
            };
            // Reports first: they make room; the source last: it fills it.
            tokio::select! {
                biased;
                () = self.session.stop.cancelled(), if self.drain_until.is_none() => self.drain(),
                changed = self.session.lease.changed() => {
                    if changed.is_err() {
                        return End::Deposed;
                    }
                }
                event = producer.events.recv() => {
                    if let Some(end) = self.take_event(event) {
                        return end;
                    }
                }
                result = finished(&mut self.marking) => {
                    if let Some(end) = self.take_mark(result) {
                        return end;
                    }
                }
                result = self.hold_writer.finished() => {
                    if let Some(end) = self.take_keep(result) {
                        return end;
                    }
                }
                () = sleep_until(mark_at.unwrap_or_else(far)), if mark_at.is_some() => {}
                result = joined(&mut self.maintenance) => {
                    if let Some(end) = self.take_maintenance(result) {
                        return end;
                    }
                }
                attempt = self.removal.next() => {
                    if let Some(end) = self.take_removed(attempt) {
                        return end;
                    }
                }
                judged = joined(&mut self.sweep.judging) => {
                    if let Some(end) = self.take_judgement(judged) {
                        return end;
                    }
                }
                findings = joined(&mut self.catalog_check) => {
                    if let Some(end) = self.take_findings(findings) {
                        return end;
                    }
                }
                asked = joined(&mut self.requests) => {
                    if let Some(end) = self.take_requests(asked) {
                        return end;
                    }
                }
                _ = maintain.tick() => self.maintain(),
                _ = look.tick() => self.look_for_missed(),
                _ = catalog.tick() => self.check_catalog(),
                _ = topics.tick() => {
                    if let Some(end) = self.ask_for_topics() {
                        return end;
                    }
                }
                _ = report.tick() => {
                    self.report();
                    self.renew_producer();
                }
                batch = self.session.source.read(), if wants_batch => {
                    if let Some(end) = self.take_batch(batch).await {
                        return end;
                    }
                }
            }
        }
    }

    /// Does what can be done without waiting; tells when the session is over.
    fn turn(&mut self) -> Option<End> {
        let lease = self.session.lease.borrow();
        if lease.epoch() != Some(self.session.token.epoch) {
            return Some(End::Deposed);
        }
        if lease.shutdown_notices != self.shutdown_notices {
            return Some(End::PostgresStops);
        }
        let may_publish = lease.may_publish(self.session.token.epoch);
        drop(lease);
        if may_publish && self.successor.is_none() {
            // In a drain too: what went out behind a row that asks waits for it.
            let mut end = self.feed_answered();
            if end.is_none() && self.feeds() {
                end = self.too_much_is_kept().or_else(|| self.feed_rows());
            }
            if end.is_some() {
                return end;
            }
        }
        self.settle()
    }

    /// Marks and confirms what came back; tells when a drain is over.
    fn settle(&mut self) -> Option<End> {
        self.start_mark();
        self.start_keep();
        self.confirm();
        let is_settled = self.is_settled();
        // A row that still waits for its topic is not to be read again.
        if is_settled && self.feed.is_empty() && self.relay.core.asking() == 0 {
            self.session.source.resolved();
        }
        let deadline = self.drain_until?;
        let is_owed = !self.owing.is_empty() && !self.session.marks.remembers_what_is_owed();
        if is_settled && !is_owed && !self.is_within_transaction() {
            return Some(End::Stopped);
        }
        if Instant::now() < deadline {
            return None;
        }
        warn!(
            rows = self.relay.core.rows(),
            "`shutdown.grace` is over and not everything is settled: rows may be sent again"
        );
        Some(End::Stopped)
    }

    fn confirm(&self) {
        if let Some(lsn) = self.relay.core.confirmable() {
            self.session.source.confirm(lsn);
        }
    }

    fn is_settled(&self) -> bool {
        let core = &self.relay.core;
        // Where nothing is marked what went out behind a row that waits for an answer would be sent again.
        let is_answered = core.asking() == 0 || !matches!(self.session.marks, Marks::None);
        let is_idle = self.marking.is_none() && self.hold_writer.is_idle() && is_answered;
        is_idle && core.sent() == 0 && core.unmarked() == 0 && core.aside() == 0
    }

    fn drain(&mut self) {
        info!(rows = self.relay.core.rows(), "draining");
        self.relay
            .status
            .state(crate::observe::status::State::Draining, "asked to stop");
        self.drain_until = Some(self.relay.stop_by());
    }

    fn take_event(&mut self, event: Option<PublisherEvent>) -> Option<End> {
        match event {
            Some(PublisherEvent::Delivered(delivered)) => {
                self.relay.acknowledged(&delivered);
                self.note_unmarked();
                self.observe_delivery(&delivered.tickets);
                self.delay_successor();
                None
            }
            Some(PublisherEvent::Topics(answers)) => self.take_topics(&answers),
            Some(PublisherEvent::Ended(end)) => {
                Some(End::Producer(self.relay.producer_ended(&end)))
            }
            None => {
                self.relay.producer = None;
                Some(End::Producer("the producer's thread ended".to_owned()))
            }
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3_600)
}
