//! Leadership, then a session, then a verdict, then a pause: the only retry loop.

pub(crate) mod verdict;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, Mark, Mode};
use crate::observe::metrics::Metrics;
use crate::observe::status::{Counting, OPENING, State, StatusCell};
use crate::observe::telemetry::Told;
use crate::publish::PublishError;
use crate::relay::session::{self, CarryOver, Decoding, OpenError, SessionBuilder};
use crate::relay::wal_watch::WalWatch;
use crate::relay::{End, Relay};
use crate::row::Lsn;
use crate::state::lease::{LeaseKeeper, LeaseState, RELEASE_MAX, Role, lease_key, lease_key_of};
use crate::text::chain;
use verdict::{NextStep, label, lacks_publication, reason, verdict};

/// The pauses between attempts, before jitter (docs/design.md, "Pauses": 1 s doubling to 15 s; the first one is
/// shorter, for a connection that was cut is back at once).
const PAUSES: [Duration; 6] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
];
/// While another reader is on the slot: a handover takes less than a second, and whoever froze is cut off in the end.
const SLOT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// While a session is being opened; the admin server calls a loop that is silent for 60 s stalled.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// A session that lived so long, delivered or blocked anything, was a good one: the pauses start anew.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// Why a relay can't even start.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error("cannot configure the producer")]
    Producer(#[from] PublishError),
}

/// One relay, from start to stop.
pub struct Supervisor {
    config: Arc<Config>,
    relay: Relay,
    status: StatusCell,
    metrics: Arc<Metrics>,
    keeper: Option<LeaseKeeper>,
    /// By replication, as long as the keeper.
    wal_watch: Option<WalWatch>,
    counting: Option<Counting>,
    epoch: Option<i64>,
    /// The name under which the state stands until it has followed the table.
    former: Option<String>,
    carry_over: CarryOver,
    decoding: Decoding,
    attempts: usize,
    told: Told,
    /// The last session ended because we were asked to stop, in order.
    is_drained: bool,
    stop: CancellationToken,
}

/// How an attempt at a session went.
pub(crate) enum Attempt {
    Ended(End),
    NotOpened(OpenError),
    /// A file behind the producer's secrets can't be used.
    NoProducer(PublishError),
}

impl Supervisor {
    pub fn new(
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        status: StatusCell,
        stop: CancellationToken,
    ) -> Self {
        let relay = Relay::new(config.clone(), metrics.clone(), status.clone());
        Self {
            config,
            relay,
            status,
            metrics,
            keeper: None,
            wal_watch: None,
            counting: None,
            epoch: None,
            former: None,
            carry_over: CarryOver::nothing(),
            decoding: Decoding::Possible,
            attempts: 0,
            told: Told::default(),
            is_drained: false,
            stop,
        }
    }

    /// Runs sessions until it is told to stop; neither PostgreSQL nor Kafka has to be there.
    ///
    /// Errors: only what no retry can mend, before the first session.
    pub async fn run(mut self) -> Result<(), SuperviseError> {
        while !self.stop.is_cancelled() {
            let attempt = match self.relay.start_producer() {
                Ok(()) => self.attempt().await?,
                Err(failure) => without_producer(failure)?,
            };
            let verdict = verdict(&attempt, self.config.source.mark);
            self.tell(&attempt, verdict);
            self.follow(&attempt);
            if verdict == NextStep::Stop {
                break;
            }
            self.pause(verdict).await;
        }
        self.settle().await;
        self.relay.end_producer(Duration::ZERO).await;
        if let Some(keeper) = self.keeper.take() {
            let within = self.relay.within_grace(RELEASE_MAX);
            keeper.release(within).await;
        }
        Ok(())
    }

    /// Marks what is in flight although no session is open, and records what was replayed: in one more, which reads nothing.
    ///
    /// A stop that meets a lost connection, or a replay, would repeat these rows otherwise. Over with the grace period.
    async fn settle(&mut self) {
        let is_in_flight = self.relay.owes_marks() && !self.is_drained;
        let is_owed = is_in_flight || !self.carry_over.replayed.is_empty();
        if self.config.source.mark == Mark::None || !is_owed {
            return;
        }
        let deadline = self.relay.stop_by();
        let Ok(Ok(session)) = timeout_at(deadline, self.open()).await else {
            warn!("rows were published and could not be marked: they may be sent again");
            return;
        };
        self.relay.enter(&session).await;
        if self.relay.start_producer().is_ok() {
            self.relay.run(session).await;
        }
    }

    async fn attempt(&mut self) -> Result<Attempt, SuperviseError> {
        let (stop, status) = (self.stop.clone(), self.status.clone());
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Attempt::Ended(End::Stopped)),
            opened = self.open() => opened,
            // A standby waits for as long as the leader lives, and does what it should.
            never = beat(&status) => match never {},
        };
        let session = match opened {
            Ok(session) => session,
            Err(failure) => return Ok(Attempt::NotOpened(failure)),
        };
        self.relay.enter(&session).await;
        // A standby has let go of the one it had.
        if let Err(failure) = self.relay.start_producer() {
            return without_producer(failure);
        }
        let (started_at, delivered_before) = (Instant::now(), self.relay.memory().delivered_rows);
        let held_before = self.relay.memory().core.held().rows();
        let end = self.relay.run(session).await;
        self.is_drained = matches!(end, End::Stopped);
        let is_good = started_at.elapsed() >= GOOD_AFTER
            || self.relay.memory().delivered_rows > delivered_before
            || self.relay.memory().core.held().rows() > held_before;
        if self.relay.memory().delivered_rows > delivered_before {
            self.told.forget();
        }
        if is_good {
            self.attempts = 0;
        }
        Ok(Attempt::Ended(end))
    }

    async fn open(&mut self) -> Result<crate::relay::Session, OpenError> {
        let options = session::connect_options(&self.config)?;
        let mut lease = self.lease(&options).await?;
        let mut epoch = self.await_leadership(lease.clone()).await;
        if let Some(former) = self.former.clone() {
            // Whoever published under the former name has ended, or is deposed now.
            session::follow_rename(&self.config.source, &options, &former, epoch).await?;
            self.change_lease().await;
            lease = self.lease(&options).await?;
            epoch = self.await_leadership(lease.clone()).await;
        }
        self.status.state(State::Waiting, OPENING);
        if self
            .epoch
            .replace(epoch)
            .is_some_and(|before| before != epoch)
        {
            // Somebody else published in between: what we still had in flight is theirs.
            self.relay.depose().await;
            self.carry_over.forget();
        }
        let mut opening = SessionBuilder {
            config: &self.config,
            options,
            lease,
            epoch,
            carry_over: &mut self.carry_over,
            topics: self
                .relay
                .memory()
                .core
                .held()
                .to_release()
                .cloned()
                .collect(),
            decoding: self.decoding,
            history: self.relay.history(),
            status: self.status.clone(),
            stop: self.stop.clone(),
        };
        opening.open().await
    }

    /// The lease's state; the first call starts the keeper, once the state tables stand.
    async fn lease(
        &mut self,
        options: &crate::postgres::ConnectOptions,
    ) -> Result<watch::Receiver<LeaseState>, OpenError> {
        if let Some(keeper) = &self.keeper {
            return Ok(keeper.state());
        }
        let (config, former) = session::prepare(&self.config, options).await?;
        let source = &config.source;
        self.status.update(|status| status.locate(source, options));
        let config = Arc::new(config);
        self.relay.configure(config.clone());
        let key = match &former {
            Some(former) => lease_key_of(&config.source, former),
            None => lease_key(&config.source),
        };
        (self.config, self.former) = (config, former);
        let keeper = LeaseKeeper::start(self.config.source.url.clone(), key, self.config.lease.ttl);
        let (source, status) = (self.config.source.clone(), self.status.clone());
        self.counting = Some(Counting::start(source, keeper.state(), status));
        if self.config.source.mode == Mode::Replication {
            let (source, status) = (&self.config.source, self.status.clone());
            let (url, replication) = (source.url.clone(), source.replication.clone());
            let watch = WalWatch::start(url, replication, keeper.state(), status);
            self.wal_watch = Some(watch);
        }
        Ok(self.keeper.insert(keeper).state())
    }

    /// Ends the contest for the lease of a name that the table does not have any more.
    async fn change_lease(&mut self) {
        (self.wal_watch, self.counting) = (None, None);
        if let Some(keeper) = self.keeper.take() {
            keeper.release(RELEASE_MAX).await;
        }
    }

    /// Waits until the lease is ours and returns its epoch.
    ///
    /// Cancel-safe: yes.
    async fn await_leadership(&mut self, mut lease: watch::Receiver<LeaseState>) -> i64 {
        loop {
            let state = lease.borrow_and_update().clone();
            self.status.lease(&state);
            match state.role {
                Role::Leader { epoch, .. } if state.may_publish(epoch) => return epoch,
                Role::Standby { .. } | Role::Lost { .. } => self.relay.depose().await,
                _ => {}
            }
            // A keeper lives as long as the supervisor; were it gone, nothing could be published.
            if lease.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Draws the consequences that outlive the session.
    fn follow(&mut self, attempt: &Attempt) {
        self.carry_over.replayed.extend(self.relay.take_replayed());
        match attempt {
            Attempt::Ended(end) => {
                self.carry_over.follow(end, self.config.source.mark);
                if let End::Source(failure) = end
                    && lacks_publication(failure)
                {
                    self.decoding = Decoding::MissingPublication;
                }
            }
            Attempt::NotOpened(OpenError::SlotLost { reason }) => {
                self.decoding = Decoding::Possible;
                self.metrics.slot_lost();
                self.status.failed(reason.as_str());
            }
            // Until a restart, however far the server writes on from where it was restored.
            Attempt::NotOpened(OpenError::Rewound { .. }) => self.relay.saw_flushed(Lsn(u64::MAX)),
            _ => {}
        }
    }

    /// Says what happened, once for each reason and not for each attempt.
    fn tell(&mut self, attempt: &Attempt, verdict: NextStep) {
        let reason = reason(attempt);
        self.metrics.session_ended(label(attempt));
        // Later on the lease's keeper knows whether PostgreSQL answers.
        if let (Attempt::NotOpened(OpenError::Postgres { source, .. }), None) =
            (attempt, &self.keeper)
        {
            self.status.update(|status| {
                status.postgres.is_up = Some(false);
                status.postgres.error = Some(chain(source));
            });
        }
        let is_news = self.told.is_news(&reason);
        match verdict {
            NextStep::Stop => info!("stopped"),
            NextStep::Again => info!(reason, "session ended; the next one starts at once"),
            NextStep::AwaitRoom => {
                self.status.state(State::Waiting, "waiting for Kafka");
                if is_news {
                    warn!(reason, "nothing can be published; waiting for Kafka");
                }
            }
            NextStep::Halt => {
                self.status.halt(reason.as_str());
                if is_news {
                    error!(reason, "halted: nothing is published until a person acts");
                }
            }
            NextStep::Retry | NextStep::AwaitSlot => {
                self.status.failed(reason.as_str());
                self.status.state(State::Waiting, reason.as_str());
                if is_news {
                    warn!(error = reason, "session ended; trying again");
                }
            }
        }
    }

    /// Waits as the verdict says, settling what Kafka still acknowledges.
    async fn pause(&mut self, verdict: NextStep) {
        let pause = match verdict {
            NextStep::Stop | NextStep::Again => {
                self.attempts = 0;
                return;
            }
            NextStep::AwaitRoom => {
                if let Some(keeper) = &self.keeper {
                    let mut lease = keeper.state();
                    self.relay.await_room(&mut lease, &self.stop).await;
                }
                return;
            }
            NextStep::Retry => PAUSES[self.attempts.min(PAUSES.len() - 1)],
            NextStep::AwaitSlot => PAUSES[self.attempts.min(PAUSES.len() - 1)].min(SLOT_PAUSE_MAX),
            NextStep::Halt => PAUSES[PAUSES.len() - 1],
        };
        self.attempts += 1;
        self.relay
            .rest(pause.mul_f64(0.5 + fastrand::f64() / 2.0), &self.stop)
            .await;
    }
}

/// A file may be mended while we run; any other configuration needs a restart.
fn without_producer(failure: PublishError) -> Result<Attempt, SuperviseError> {
    match failure.is_of_files() {
        true => Ok(Attempt::NoProducer(failure)),
        false => Err(failure.into()),
    }
}

/// Says again and again that the main loop turns.
///
/// Cancel-safe: yes.
async fn beat(status: &StatusCell) -> Infallible {
    loop {
        status.beat();
        tokio::time::sleep(BEAT_EVERY).await;
    }
}
