//! The task that waits for the lease, takes it and renews it, on a connection of its own.
//!
//! Owns the relay's role and publishes it. Never waits for anything but PostgreSQL, so that neither Kafka nor
//! a full queue can cost us the lease.

use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::{
    Decision, Holder, LeaseError, LeaseState, Owner, Role, Server, Standby, owner::shown,
    since_boot, statements, suspension,
};
use crate::config::UrlSource;
use crate::postgres::{self, Class, ConnectOptions, PostgresError, SqlConnection};
use crate::text::chain;

/// A holder renews this often, or four times in a TTL if that is more often.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// A standby reads this often: a released lease is taken within it.
const READ_EVERY: Duration = Duration::from_millis(500);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_HOLDER_MAX: Duration = Duration::from_secs(1);
const RETRY_STANDBY_MAX: Duration = Duration::from_secs(2);
/// An answer is given up after half a TTL, but not sooner than this.
const ANSWER_MIN: Duration = Duration::from_secs(2);
const CONNECT_MAX: Duration = Duration::from_secs(8);
/// How long a lease may take to be given back.
pub const RELEASE_MAX: Duration = Duration::from_secs(2);
/// A session that takes no writes is given up for another, whose role may be allowed to write by then.
const READ_ONLY_AGAIN_AFTER: Duration = Duration::from_millis(500);
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Errors that take turns are not said more often than this.
const LOG_CHANGES_EVERY: Duration = Duration::from_secs(5);

/// Keeps the lease of one outbox for as long as it lives.
///
/// Dropping it stops the task without releasing: the next relay waits a TTL, or until our death is proven.
pub struct LeaseKeeper {
    state: watch::Receiver<LeaseState>,
    stop: Option<oneshot::Sender<()>>,
    tasks: [JoinHandle<()>; 2],
}

impl LeaseKeeper {
    /// Starts to contend for the lease of `outbox` (`schema.table`); the URL is read again at each connect.
    pub fn start(url: UrlSource, outbox: String, ttl: Duration) -> Self {
        let (sender, state) = watch::channel(LeaseState {
            role: Role::Starting,
            server: Server::Away,
            shutdown_notices: 0,
            last_error: None,
        });
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper {
            url,
            outbox,
            ttl,
            owner: Owner::this_process(),
            state: sender.clone(),
            part: Part::Standby(Standby::default()),
            connections: 0,
            is_unanswered: false,
            noise: Noise::default(),
        };
        let tasks = [
            tokio::spawn(keeper.run(stopped)),
            tokio::spawn(suspension::watch(sender)),
        ];
        Self {
            state,
            stop: Some(stop),
            tasks,
        }
    }

    /// What is known of the lease, and each change of it.
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Gives the lease back and ends the keeper; gives up when PostgreSQL does not answer in time.
    ///
    /// To be called when the producer holds nothing any more and the slot is left.
    pub async fn release(mut self, within: Duration) {
        if let Some(stop) = self.stop.take() {
            // The task has ended already where nobody listens.
            let _ = stop.send(());
        }
        if timeout(within, &mut self.tasks[0]).await.is_err() {
            warn!("the lease could not be released in time; the next relay waits for it to expire");
        }
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

enum Part {
    Standby(Standby),
    Holder(Holder),
}

struct Keeper {
    url: UrlSource,
    outbox: String,
    ttl: Duration,
    owner: Owner,
    state: watch::Sender<LeaseState>,
    part: Part,
    connections: u64,
    /// The last statement was not answered in time.
    is_unanswered: bool,
    noise: Noise,
}

impl Keeper {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        loop {
            let session = tokio::select! {
                // A stop is seen first: a connection that comes at the same time is not used.
                biased;
                _ = &mut stop => return self.stop(None).await,
                session = self.connect() => session,
            };
            tokio::select! {
                biased;
                _ = &mut stop => return self.stop(Some(session)).await,
                () = self.keep(&session) => {}
            }
        }
    }

    /// Connects, however long it takes.
    ///
    /// A holder comes back sooner than a standby may take its lease.
    async fn connect(&mut self) -> SqlConnection {
        let (mut retry, mut patience) = (RETRY_MIN, self.answer_max());
        loop {
            match self.open(patience).await {
                Ok(session) => {
                    self.connections += 1;
                    // What went wrong is over when a statement succeeds.
                    self.state
                        .send_modify(|state| state.server = Server::Connected);
                    return session;
                }
                Err(error) => {
                    if matches!(error, LeaseError::ConnectTimeout(_)) {
                        patience = (patience * 2).min(CONNECT_MAX);
                    }
                    let server = match &error {
                        LeaseError::Connect(cause) => server_after(cause),
                        _ => Server::Away,
                    };
                    self.failed(&error, server);
                }
            }
            sleep(retry.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            retry = (retry * 2).min(match self.part {
                Part::Holder(_) => RETRY_HOLDER_MAX.min(self.ttl / 4),
                Part::Standby(_) => RETRY_STANDBY_MAX,
            });
        }
    }

    async fn open(&self, patience: Duration) -> Result<SqlConnection, LeaseError> {
        let options = read_url(self.url.clone()).await?;
        match timeout(patience, postgres::connect(&options, "lease")).await {
            Ok(Ok(session)) if session.is_standby => Err(LeaseError::HotStandby(session.host)),
            Ok(session) => session.map_err(LeaseError::Connect),
            Err(_) => Err(LeaseError::ConnectTimeout(patience)),
        }
    }

    /// Reads or renews until the connection ends or an answer does not come.
    async fn keep(&mut self, session: &SqlConnection) {
        loop {
            let answer_max = self.answer_max();
            let pause = match timeout(answer_max, self.turn_unless_awaited(session)).await {
                Ok(Ok(pause)) => {
                    self.succeeded();
                    pause
                }
                Ok(Err(error)) => {
                    let server = session
                        .end()
                        .map_or(Server::Connected, |end| server_after(&end));
                    self.failed(&error, server);
                    if error.is_read_only() {
                        sleep(READ_ONLY_AGAIN_AFTER).await;
                        return;
                    }
                    RETRY_MIN.max(self.ttl / 16)
                }
                Err(_) => {
                    self.is_unanswered = true;
                    self.failed(&LeaseError::Timeout(answer_max), Server::Away);
                    return;
                }
            };
            tokio::select! {
                // The end first: nothing is asked on a connection that has ended.
                biased;
                end = session.closed() => {
                    let server = server_after(&end);
                    self.failed(&LeaseError::Ended(end), server);
                    return;
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// Asks once, unless a commit that was not answered still waits for a standby: one more would wait as well, and its
    /// backend for as long as no standby answers.
    async fn turn_unless_awaited(
        &mut self,
        session: &SqlConnection,
    ) -> Result<Duration, LeaseError> {
        if self.is_unanswered {
            if let Some(names) = statements::awaited_standbys(session).await {
                return Err(LeaseError::CommitWaits { names });
            }
            self.is_unanswered = false;
        }
        self.turn(session).await
    }

    /// Asks once and returns how long to pause.
    async fn turn(&mut self, session: &SqlConnection) -> Result<Duration, LeaseError> {
        match &mut self.part {
            Part::Holder(holder) => {
                let (sent_at, owner) = (since_boot(), self.owner.as_str());
                match statements::renew(session, &self.outbox, owner, holder.epoch()).await {
                    Ok(()) => {
                        holder.renewed(sent_at);
                        Ok(self.lead(sent_at))
                    }
                    Err(LeaseError::Lost { by, epoch }) => Ok(self.lost(by, epoch)),
                    Err(error) => Err(error),
                }
            }
            Part::Standby(standby) => {
                let row = statements::read(session, &self.outbox).await?;
                let life = row.as_ref().map(|row| self.owner.life_of(&row.owner));
                let life = life.unwrap_or(super::Life::Unknown);
                match standby.observe(since_boot(), row.as_ref(), self.connections, life) {
                    Decision::Wait { holder, free_in } => Ok(self.wait(holder, free_in)),
                    Decision::Take { expected } => self.take(session, expected).await,
                }
            }
        }
    }

    async fn take(
        &mut self,
        session: &SqlConnection,
        expected: Option<super::Version>,
    ) -> Result<Duration, LeaseError> {
        let (sent_at, owner) = (since_boot(), self.owner.as_str());
        match statements::take(session, &self.outbox, owner, self.ttl, expected).await? {
            Some(epoch) => {
                self.part = Part::Holder(Holder::new(epoch, self.ttl, sent_at));
                info!(outbox = self.outbox, epoch, "took the lease");
                Ok(self.lead(sent_at))
            }
            // Somebody was faster: look at once who it is.
            None => Ok(Duration::ZERO),
        }
    }

    /// The pause counts from when the server was asked, as the lease does: an answer that took long shortens it.
    fn lead(&mut self, sent_at: Duration) -> Duration {
        if let Part::Holder(holder) = &self.part {
            let (epoch, valid_until) = (holder.epoch(), holder.valid_until());
            self.set_role(Role::Leader { epoch, valid_until });
        }
        let asked_since = since_boot().saturating_sub(sent_at);
        RENEW_EVERY.min(self.ttl / 4).saturating_sub(asked_since)
    }

    fn lost(&mut self, by: String, epoch: i64) -> Duration {
        error!(
            outbox = self.outbox,
            epoch,
            by = shown(&by),
            "lost the lease"
        );
        self.part = Part::Standby(Standby::default());
        self.set_role(Role::Lost { by, epoch });
        READ_EVERY
    }

    fn wait(&mut self, holder: String, free_in: Duration) -> Duration {
        if self.noise.holder_is_news(&holder) {
            info!(
                outbox = self.outbox,
                holder = shown(&holder),
                "another relay holds the lease"
            );
        }
        self.set_role(Role::Standby { holder });
        READ_EVERY.min(free_in)
    }

    fn set_role(&self, role: Role) {
        self.state.send_if_modified(|state| {
            let changed = state.role != role;
            state.role = role;
            changed
        });
    }

    fn succeeded(&mut self) {
        if self.noise.end_of_trouble() {
            info!(outbox = self.outbox, "the lease can be reached again");
        }
        self.state
            .send_if_modified(|state| state.last_error.take().is_some());
    }

    fn failed(&mut self, error: &LeaseError, server: Server) {
        let error = chain(error);
        if self.noise.error_is_news(&error) {
            warn!(
                outbox = self.outbox,
                error, "lost contact with PostgreSQL: cannot renew the lease"
            );
        }
        self.state.send_if_modified(|state| {
            let changed = state.server != server || state.last_error.as_ref() != Some(&error);
            if changed && server == Server::ShuttingDown {
                state.shutdown_notices += 1;
            }
            (state.server, state.last_error) = (server, Some(error));
            changed
        });
    }

    /// Releases what may be ours, on `session` or on a last one.
    async fn stop(mut self, session: Option<SqlConnection>) {
        let session = match (session, &self.part) {
            (Some(session), _) => Ok(session),
            (None, Part::Holder(_)) => self.open(RELEASE_MAX).await,
            (None, Part::Standby(_)) => return self.set_role(Role::Released),
        };
        let released = match session {
            Ok(session) => statements::release(&session, &self.outbox, self.owner.as_str()).await,
            Err(error) => Err(error),
        };
        match released {
            Ok(()) => info!(outbox = self.outbox, "released the lease"),
            Err(error) => self.failed(&error, Server::Away),
        }
        self.part = Part::Standby(Standby::default());
        self.set_role(Role::Released);
    }

    fn answer_max(&self) -> Duration {
        ANSWER_MIN.max(self.ttl / 2)
    }
}

fn server_after(end: &PostgresError) -> Server {
    match end.class() {
        Class::Shutdown => Server::ShuttingDown,
        _ => Server::Away,
    }
}

/// Reads the URL where it can block nobody else: its file may stand on a slow disk.
async fn read_url(source: UrlSource) -> Result<ConnectOptions, LeaseError> {
    let reading = tokio::task::spawn_blocking(move || source.options());
    match reading.await {
        Ok(url) => url.map_err(LeaseError::Url),
        // The runtime is ending, and with it this task.
        Err(_) => std::future::pending().await,
    }
}

/// What was logged last, so that waiting and trouble are said once a minute and when they change.
#[derive(Default)]
struct Noise {
    holder: Option<(String, Duration)>,
    error: Option<(String, Duration)>,
}

impl Noise {
    fn holder_is_news(&mut self, holder: &str) -> bool {
        is_news(&mut self.holder, holder, Duration::ZERO)
    }

    fn error_is_news(&mut self, error: &str) -> bool {
        is_news(&mut self.error, error, LOG_CHANGES_EVERY)
    }

    fn end_of_trouble(&mut self) -> bool {
        self.error.take().is_some()
    }
}

fn is_news(last: &mut Option<(String, Duration)>, text: &str, changes_every: Duration) -> bool {
    let now = since_boot();
    let news = match last {
        Some((said, at)) => {
            let age = now.saturating_sub(*at);
            age >= LOG_EVERY || said != text && age >= changes_every
        }
        None => true,
    };
    if news {
        *last = Some((text.to_owned(), now));
    }
    news
}
