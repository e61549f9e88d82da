//! A TCP proxy whose weather a test makes: it cuts, holds, loses, delays and slows what passes.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Reads that may be on a far way at once.
const LATE_MAX: usize = 256;

/// What happens to bytes in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    /// Nothing passes until it is released; the peers' systems acknowledge what they sent, so nobody sees an error.
    pub is_held: bool,
    /// What comes is taken and never passed on.
    pub is_lost: bool,
    /// Each read waits so long before it is passed on, and the next read for it.
    pub delay: Duration,
    /// What comes arrives so much later: a far way, which is as wide as a near one.
    pub latency: Duration,
    /// At most so many bytes are passed on at once; 0: as they come.
    pub chunk_bytes: usize,
    /// At most so many bytes a second; 0: as fast as they come.
    pub bytes_per_second: usize,
}

/// What happens to connections, those that stand and those that come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub to_server: Flow,
    pub to_client: Flow,
    /// Only replication connections feel it, all others pass freely.
    pub is_for_replication: bool,
    /// New connections are closed at once.
    pub is_closed: bool,
    /// A connection on which nothing passes for so long is forgotten, as NAT does: what comes later is lost, and nobody
    /// is told.
    pub forgets_after: Option<Duration>,
    /// Counts the cuts: connections of an older number are reset.
    cuts: u64,
}

/// A proxy to one port of this machine, gone when dropped.
pub struct Proxy {
    pub port: u16,
    weather: watch::Sender<Weather>,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

/// What passed through a proxy.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    /// Requests of Kafka's protocol for metadata, where each came alone.
    metadata_requests: AtomicUsize,
    /// The highest LSN that a status update to a walsender called flushed.
    confirmed_lsn: AtomicU64,
}

impl Proxy {
    /// Listens on a free port and carries every connection to `to`.
    pub async fn start(to: u16) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, super::workspace::free_port(), to).await
    }

    /// `start` at an address of its own, such as 127.0.0.2.
    pub async fn start_at(address: Ipv4Addr, port: u16, to: u16) -> Self {
        let listener = TcpListener::bind((address, port)).await;
        let listener = listener.expect("listen on a free port");
        let weather = watch::Sender::new(Weather::default());
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(accept(listener, to, weather.clone(), seen.clone()));
        Self {
            port,
            weather,
            seen,
            task,
        }
    }

    /// Changes the weather, for standing connections too.
    pub fn set(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    /// Ends all weather.
    pub fn clear(&self) {
        self.set(|weather| {
            *weather = Weather {
                cuts: weather.cuts,
                ..Weather::default()
            }
        });
    }

    /// Resets every connection; new ones are taken at once.
    pub fn cut(&self) {
        self.set(|weather| weather.cuts += 1);
    }

    /// Refuses new connections by closing them, and resets those that stand.
    pub fn close(&self) {
        self.set(|weather| weather.is_closed = true);
        self.cut();
    }

    pub fn open(&self) {
        self.set(|weather| weather.is_closed = false);
    }

    /// How many connections it has carried so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// How many requests for metadata came to Kafka so far; one that comes together with others is not seen.
    pub fn metadata_requests(&self) -> usize {
        self.seen.metadata_requests.load(Ordering::Relaxed)
    }

    /// The highest LSN that a status update asked a walsender to confirm; it is counted before it is passed on.
    pub fn confirmed_lsn(&self) -> u64 {
        self.seen.confirmed_lsn.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.close();
    }
}

async fn accept(listener: TcpListener, to: u16, weather: watch::Sender<Weather>, seen: Arc<Seen>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        if !weather.borrow().is_closed {
            seen.connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(carry(client, to, weather.subscribe(), seen.clone()));
        }
    }
}

async fn carry(
    mut client: TcpStream,
    to: u16,
    mut weather: watch::Receiver<Weather>,
    seen: Arc<Seen>,
) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut first = [0; 1024];
    let size = client.peek(&mut first).await.unwrap_or_default();
    let is_replication = first[..size].windows(11).any(|part| part == b"replication");
    let cuts = weather.borrow().cuts;
    let passed_at = Mutex::new(Some(Instant::now()));
    let pumps = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = Pump {
            flow: |weather| weather.to_server,
            is_replication,
            weather: weather.clone(),
            seen: Some(&*seen),
            passed_at: &passed_at,
        };
        let down = Pump {
            flow: |weather| weather.to_client,
            is_replication,
            weather: weather.clone(),
            seen: None,
            passed_at: &passed_at,
        };
        async move {
            tokio::join!(
                up.run(from_client, to_server),
                down.run(from_server, to_client)
            )
        }
    };
    let is_cut = tokio::select! {
        _ = pumps => false,
        changed = weather.wait_for(|weather| weather.cuts != cuts) => changed.is_ok(),
    };
    if is_cut {
        // A reset instead of an orderly end: what was not read yet is lost.
        for stream in [&client, &server] {
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// One direction of one connection.
struct Pump<'a> {
    flow: fn(&Weather) -> Flow,
    is_replication: bool,
    weather: watch::Receiver<Weather>,
    seen: Option<&'a Seen>,
    /// When something passed last, either way; nothing once the connection is forgotten.
    passed_at: &'a Mutex<Option<Instant>>,
}

impl Pump<'_> {
    async fn run(mut self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut buffer = vec![0; 64 << 10];
        let mut late: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        loop {
            let next_at = late.front().map_or_else(Instant::now, |(at, _)| *at);
            let size = tokio::select! {
                () = sleep_until(next_at), if !late.is_empty() => {
                    let (_, bytes) = late.pop_front().expect("it is not empty");
                    if self.pass(&bytes, &mut to).await.is_err() {
                        break;
                    }
                    continue;
                }
                read = from.read(&mut buffer), if late.len() < LATE_MAX => match read {
                    Ok(size) if size > 0 => size,
                    _ => break,
                },
            };
            self.note(&buffer[..size]);
            let latency = (self.flow)(&self.weather.borrow()).latency;
            if !latency.is_zero() || !late.is_empty() {
                late.push_back((Instant::now() + latency, buffer[..size].to_vec()));
            } else if self.pass(&buffer[..size], &mut to).await.is_err() {
                break;
            }
        }
        for (at, bytes) in late {
            sleep_until(at).await;
            let _ = self.pass(&bytes, &mut to).await;
        }
        let _ = to.shutdown().await;
    }

    fn note(&self, bytes: &[u8]) {
        match self.seen {
            Some(seen) if self.is_replication => note_confirmation(bytes, seen),
            Some(seen) => note_metadata(bytes, seen),
            None => {}
        }
    }

    async fn pass(
        &mut self,
        bytes: &[u8],
        to: &mut (impl AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        let flow = self.released().await;
        if flow.is_lost || self.is_forgotten() {
            return Ok(());
        }
        tokio::time::sleep(flow.delay).await;
        let chunk_bytes = match (flow.chunk_bytes, flow.bytes_per_second) {
            (0, 0) => bytes.len(),
            // Ten portions a second.
            (0, pace) => pace.div_ceil(10),
            (size, _) => size,
        };
        for chunk in bytes.chunks(chunk_bytes) {
            to.write_all(chunk).await?;
            to.flush().await?;
            if flow.bytes_per_second > 0 {
                let share = chunk.len() as f64 / flow.bytes_per_second as f64;
                tokio::time::sleep(Duration::from_secs_f64(share)).await;
            }
        }
        Ok(())
    }

    /// Takes note that something passes, where it still does.
    fn is_forgotten(&self) -> bool {
        let forgets_after = self.weather.borrow().forgets_after;
        let mut passed_at = self.passed_at.lock().expect("nobody panics with it");
        let is_late = |at: &Instant| forgets_after.is_some_and(|after| at.elapsed() > after);
        *passed_at = passed_at.filter(|at| !is_late(at)).map(|_| Instant::now());
        passed_at.is_none()
    }

    /// Waits until this direction is not held, and says what else happens to it.
    async fn released(&mut self) -> Flow {
        let (flow, is_replication) = (self.flow, self.is_replication);
        let felt = |weather: &Weather| match weather.is_for_replication && !is_replication {
            true => Flow::default(),
            false => flow(weather),
        };
        match self
            .weather
            .wait_for(|weather| !felt(weather).is_held)
            .await
        {
            Ok(weather) => felt(&weather),
            Err(_) => Flow::default(),
        }
    }
}

/// A request of Kafka's protocol: length, number of the API; 3 asks for metadata.
fn note_metadata(bytes: &[u8], seen: &Seen) {
    let length = bytes
        .first_chunk()
        .map(|length| u32::from_be_bytes(*length));
    let is_whole = length.is_some_and(|length| length as usize + 4 == bytes.len());
    if is_whole && bytes.get(4..6) == Some(&[0, 3]) {
        seen.metadata_requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// A CopyData message (`d`, length) with a status update (`r`, LSN written, LSN flushed, …).
fn note_confirmation(bytes: &[u8], seen: &Seen) {
    let is_update = bytes.first() == Some(&b'd') && bytes.get(5) == Some(&b'r');
    let lsn = bytes.get(14..22).filter(|_| is_update);
    if let Some(lsn) = lsn.and_then(|lsn| lsn.try_into().ok()) {
        seen.confirmed_lsn
            .fetch_max(u64::from_be_bytes(lsn), Ordering::Relaxed);
    }
}
