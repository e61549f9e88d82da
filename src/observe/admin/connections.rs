//! The connections to `admin.listen`: bounded in number, in time and in what they may ask.
//!
//! Anybody who reaches the port may open them, and the relay needs its descriptors itself. So the oldest gives way
//! rather than the newest, who may be a probe. Knows nothing of what is asked and answered.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Far below the 1,024 descriptors that a process usually has; a probe and a scrape are a few at a time.
const CONNECTIONS_MAX: usize = 32;
/// How long a request may take to arrive.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// How long a connection may live; it serves one request.
const CONNECTION_MAX: Duration = Duration::from_secs(30);
/// How large a request may be, all its headers included: a cookie and a token of a proxy fit.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// After a connection could not be taken: no descriptor may be free.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until it is stopped, and then what was asked before.
///
/// Cancel-safe: dropped, it drops all connections.
pub(super) async fn serve(listener: TcpListener, answers: Router, stop: CancellationToken) {
    let mut open = Open::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                open.admit(answer(stream, answers.clone(), stop.clone()))
                    .await;
            }
            Err(error) => {
                debug!(%error, "an admin connection was not taken");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    while open.tasks.join_next().await.is_some() {}
}

/// The connections that stand.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    /// The oldest first; those that have ended may be among them.
    handles: VecDeque<AbortHandle>,
}

impl Open {
    /// Serves one more; where there are too many the oldest ends, and its descriptor is free before the next one comes.
    async fn admit(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.handles.retain(|handle| !handle.is_finished());
        let handle = self.tasks.spawn(connection);
        self.handles.push_back(handle);
        while self.tasks.len() > CONNECTIONS_MAX {
            if let Some(oldest) = self.handles.pop_front() {
                oldest.abort();
            }
            self.tasks.join_next().await;
        }
    }
}

async fn answer(stream: TcpStream, answers: Router, stop: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_MAX)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(answers));
    let mut connection = std::pin::pin!(connection);
    let served = async {
        tokio::select! {
            served = connection.as_mut() => return served,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    // Whoever asks wrongly or hears nothing more sees that for himself.
    let _ = timeout(CONNECTION_MAX, served).await;
}
