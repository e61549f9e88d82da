//! A TCP proxy whose connections a test can cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// A proxy to one port of this machine, gone when dropped.
pub struct Proxy {
    pub port: u16,
    cuts: broadcast::Sender<()>,
    is_closed: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and carries every connection to `to`.
    pub async fn start(to: u16) -> Self {
        let port = super::workspace::free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await;
        let listener = listener.expect("listen on a free port");
        let cuts = broadcast::Sender::new(1);
        let is_closed = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(accept(listener, to, cuts.clone(), is_closed.clone()));
        Self {
            port,
            cuts,
            is_closed,
            task,
        }
    }

    /// Resets every connection; new ones are taken at once.
    pub fn cut(&self) {
        // Without a connection nobody listens.
        let _ = self.cuts.send(());
    }

    /// Refuses new connections by closing them, and resets those that stand.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.cut();
    }

    pub fn open(&self) {
        self.is_closed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    to: u16,
    cuts: broadcast::Sender<()>,
    is_closed: Arc<AtomicBool>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        if !is_closed.load(Ordering::Relaxed) {
            tokio::spawn(carry(client, to, cuts.subscribe()));
        }
    }
}

async fn carry(mut client: TcpStream, to: u16, mut cuts: broadcast::Receiver<()>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = cuts.recv() => {
            // A reset instead of an orderly end: what was not read yet is lost.
            for stream in [&client, &server] {
                let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        }
    }
}
