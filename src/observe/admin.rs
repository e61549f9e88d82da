//! The HTTP server on `admin.listen`: `/metrics`, `/livez`, `/readyz` and `/status`.
//!
//! Reads the report and the counters, changes nothing, and never waits for PostgreSQL or Kafka.

mod connections;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::observe::metrics::Metrics;
use crate::observe::status::{Status, StatusCell};

/// A main loop that has not turned for so long hangs: `/livez` says so, that the process be restarted.
const STALLED_AFTER: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_millis(500);
const NOT_FOUND: &str = "outboxd: /metrics /livez /readyz /readyz?strict /status\n";
/// Source: Prometheus, "Exposition formats", text-based format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The server can't be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error(
        "cannot listen on `{listen}`; set `admin.listen` to an address of this machine that is free, \
         such as `127.0.0.1:9465`"
    )]
    Bind {
        listen: String,
        #[source]
        source: std::io::Error,
    },
}

/// The running server; dropping it stops it at once.
pub(crate) struct Admin {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Sources {
    status: StatusCell,
    metrics: Arc<Metrics>,
}

impl Admin {
    /// Listens and answers from here on.
    ///
    /// Errors: `Bind` where the address is taken, not ours, or none.
    pub(crate) async fn start(
        listen: &str,
        status: StatusCell,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AdminError> {
        let bound = async {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bound.await.map_err(|source| AdminError::Bind {
            listen: listen.to_owned(),
            source,
        })?;
        info!(%address, "admin server listens");
        Ok(Self::serve(listener, status, metrics))
    }

    /// Answers on a socket that listens already.
    fn serve(listener: TcpListener, status: StatusCell, metrics: Arc<Metrics>) -> Self {
        let stop = CancellationToken::new();
        let answers = router(Sources { status, metrics });
        let task = tokio::spawn(connections::serve(listener, answers, stop.clone()));
        Self { stop, task }
    }

    /// Answers what was asked and stops, within half a second.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        // What was not answered by then is dropped with the task.
        let _ = timeout(STOP_MAX, &mut self.task).await;
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .fallback(|| async { (StatusCode::NOT_FOUND, NOT_FOUND) })
        .with_state(sources)
}

async fn metrics(State(sources): State<Sources>) -> Response {
    let text = sources.metrics.render(&sources.status.snapshot());
    ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

async fn status(State(sources): State<Sources>) -> Json<Status> {
    Json(sources.status.snapshot())
}

/// Fails only where a restart could help: when the main loop hangs, whatever the world outside does.
async fn livez(State(sources): State<Sources>) -> (StatusCode, String) {
    let silent_for = sources.status.silent_for();
    if silent_for > STALLED_AFTER {
        let seconds = silent_for.as_secs();
        let text = format!("stalled: the main loop has not turned for {seconds} s\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text);
    }
    (StatusCode::OK, summary(&sources.status.snapshot()))
}

/// Ready while the process works; `?strict` asks whether rows go out.
async fn readyz(State(sources): State<Sources>, RawQuery(query): RawQuery) -> (StatusCode, String) {
    let status = sources.status.snapshot();
    let code = match is_strict(query.as_deref()) && !status.publishes() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    };
    (code, summary(&status))
}

fn is_strict(query: Option<&str>) -> bool {
    let mut parts = query.unwrap_or_default().split('&');
    parts.any(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        name == "strict" && !matches!(value, "false" | "0")
    })
}

fn summary(status: &Status) -> String {
    let (role, state) = (status.role.name(), status.state.name());
    match (role == state, status.reason.as_str()) {
        (true, "") => format!("{role}\n"),
        (true, reason) => format!("{role}: {reason}\n"),
        (false, "") => format!("{role}, {state}\n"),
        (false, reason) => format!("{role}, {state}: {reason}\n"),
    }
}

#[cfg(test)]
mod tests;
