//! A thread with an I/O driver of its own, for the stream alone.

use std::future::Future;
use std::io;

use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// Runs `work` on a thread and an I/O driver that nothing else waits on.
///
/// Under load the stream sleeps so that rows gather in its socket. A driver that other tasks wait on would be woken by
/// each of the walsender's messages meanwhile, which both sides pay for: 65k rows/s over TCP instead of 72k.
/// Errors: the operating system's, where there can be no thread.
/// Cancel-safe: dropping it drops `work` on its thread.
pub(super) async fn alone<F>(work: F) -> io::Result<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (mut tell, told) = oneshot::channel();
    let run = move || {
        // Built here, because a runtime must not be dropped inside another one.
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(tell.send(Err(error))),
        };
        runtime.block_on(async {
            tokio::select! {
                () = tell.closed() => {}
                output = work => drop(tell.send(Ok(output))),
            }
        });
        // A look-up of a host's name may still wait.
        runtime.shutdown_background();
    };
    std::thread::Builder::new()
        .name("stream".into())
        .spawn(run)?;
    told.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_the_work_returns_comes_back_from_its_thread() {
        let name = alone(async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.unwrap().as_deref(), Some("stream"));
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_dropped() {
        let (held, dropped) = oneshot::channel::<()>();
        let work = async move {
            let _held = held;
            pending::<()>().await;
        };
        assert!(
            timeout(Duration::from_millis(50), alone(work))
                .await
                .is_err()
        );
        let dropped = timeout(Duration::from_secs(10), dropped).await;
        assert!(dropped.is_ok_and(|dropped| dropped.is_err()));
    }
}
