//! Lines on their way to a stream that may block.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::text::paste;

/// At a few hundred bytes a line this is about a megabyte.
const LINES_MAX: usize = 4096;
/// How long the end of the process waits for a stream that may be blocked.
const FLUSH_MAX: Duration = Duration::from_millis(500);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines that were dropped because the stream did not take them in time, since the process started.
pub(crate) fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

enum Line {
    Text(Vec<u8>),
    /// Everything before it is written when this is dropped.
    Flush(SyncSender<()>),
}

/// Writes what is queued when it is dropped, as far as the stream takes it within half a second.
#[must_use = "the log's last lines are lost without it"]
pub(crate) struct LogGuard(SyncSender<Line>);

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (done, flushed) = sync_channel(0);
        if self.0.try_send(Line::Flush(done)).is_ok() {
            // The sender is dropped when its turn has come; nothing is ever sent.
            let _ = flushed.recv_timeout(FLUSH_MAX);
        }
    }
}

/// Hands each line to the thread that writes.
#[derive(Clone)]
pub(super) struct LineWriter(SyncSender<Line>);

/// Starts the thread that writes to `stream`.
pub(super) fn start(stream: impl Write + Send + 'static) -> io::Result<(LineWriter, LogGuard)> {
    let (sender, lines) = sync_channel(LINES_MAX);
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_all(stream, &lines))?;
    Ok((LineWriter(sender.clone()), LogGuard(sender)))
}

fn write_all(mut stream: impl Write, lines: &Receiver<Line>) {
    for line in lines {
        match line {
            Line::Text(text) => {
                if stream
                    .write_all(&text)
                    .and_then(|()| stream.flush())
                    .is_err()
                {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
            Line::Flush(done) => drop(done),
        }
    }
}

impl Write for LineWriter {
    /// Takes a whole line at once, which is how the formatter writes.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let line = match std::str::from_utf8(text) {
            Ok(line) => paste::complete(line).into_owned().into_bytes(),
            Err(_) => text.to_vec(),
        };
        if self.0.try_send(Line::Text(line)).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Takes a line only when it is allowed to.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(text.to_vec()).map_err(io::Error::other)?;
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stream_that_nobody_reads_blocks_nobody_and_drops_are_counted() {
        let (allow, allowed) = mpsc::channel();
        let (written, lines) = mpsc::channel();
        let (mut writer, guard) = start(Slow(allowed, written)).expect("a thread");
        let began = Instant::now();
        for _ in 0..LINES_MAX + 100 {
            writer.write_all(b"a line\n").expect("it never fails");
        }
        assert!(lines_dropped() >= 99);
        drop(guard);
        assert!(began.elapsed() < Duration::from_secs(60));
        allow.send(()).expect("the thread waits");
        assert_eq!(lines.recv().expect("a line"), b"a line\n");
    }

    #[test]
    fn the_guard_waits_for_what_is_queued() {
        let (written, lines) = mpsc::channel();
        let (allow, allowed) = mpsc::channel();
        (0..3).for_each(|_| allow.send(()).expect("it is open"));
        let (mut writer, guard) = start(Slow(allowed, written)).expect("a thread");
        for line in ["one\n", "two\n", "three\n"] {
            writer.write_all(line.as_bytes()).expect("it never fails");
        }
        drop(guard);
        assert_eq!(lines.try_iter().count(), 3);
    }
}
