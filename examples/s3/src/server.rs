//! The S3 server, and what a handoff asks of it.
//!
//! States: *opened* → [`serve`](S3Server::serve) → *serving* → [`drain`](S3Server::drain) → *draining* (still
//! accepts; clients move on) → [`seal`](S3Server::seal) → *sealed* (accepts nothing, writes nothing, has closed
//! everything but the listener). `serve` leads back from every state, also after a seal that failed.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::connection::{self, Gate};
use crate::store::Store;
use crate::traffic::Traffic;
use crate::{BoxError, log};

/// How much longer a drain may take so that the seal finds nothing to wait for.
const LULL: Duration = Duration::from_millis(50);

/// How long a seal waits for requests that were short when the drain ended and turn out not to be. New
/// connections wait meanwhile, so giving up is better than patience.
const SEAL_PATIENCE: Duration = Duration::from_secs(2);

/// How long requests may still take before they are cut, if they may be cut.
const CUT_PATIENCE: Duration = Duration::from_millis(500);

/// How long nobody is accepted after the system has run out of something, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the server serves, and to whom.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory that holds the buckets; it must exist.
    pub data_dir: PathBuf,
    /// The access key that requests must be signed with.
    pub access_key: String,
    /// The secret that belongs to it.
    pub secret_key: String,
}

/// An S3 server over one directory and one listener. Errors of single clients end their connection only.
pub struct S3Server {
    config: Config,
    listener: TcpListener,
    gate: watch::Sender<Gate>,
    traffic: Traffic,
    /// `None` when sealed.
    store: Option<S3Service>,
    acceptor: Option<Acceptor>,
}

impl S3Server {
    /// Opens the data; nothing is accepted before [`serve`](Self::serve). To be called only when no other
    /// process writes to the data directory, because opening the store removes the temporary files it finds.
    ///
    /// # Errors
    ///
    /// The data directory cannot be opened.
    pub fn open(config: Config, listener: TcpListener) -> io::Result<Self> {
        let (gate, traffic) = (watch::Sender::new(Gate::Open), Traffic::default());
        let store = Some(open_store(&config)?);
        Ok(Self { config, listener, gate, traffic, store, acceptor: None })
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    ///
    /// The listener has none.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Asks the clients to move on, and waits until only short requests of new connections are in
    /// progress, or until `cancelled` is ready. Accepts all the while; the answers say `Connection: close`.
    /// Either way the server goes on like this until it is told to [`seal`](Self::seal) or to
    /// [`serve`](Self::serve).
    pub async fn drain(&mut self, cancelled: impl Future<Output = ()>) {
        self.gate.send_replace(Gate::Draining);
        tokio::select! {
            () = self.lull(Instant::now()) => {}
            () = cancelled => {}
        }
    }

    /// Waits for a good moment to seal: the first at which only short requests are in progress, or a little
    /// later one at which there are none at all.
    async fn lull(&self, drain_began: Instant) {
        self.traffic.quiet(drain_began).await;
        if timeout(LULL, self.traffic.empty()).await.is_err() {
            self.traffic.quiet(drain_began).await;
        }
    }

    /// Stops accepting, finishes what is in progress, and closes the store. The listener stays open, and
    /// who has not been accepted yet waits in its queue. Nothing is left to flush: the store syncs each
    /// change before it is acknowledged. After this the process does not write.
    ///
    /// With `may_cut`, connections that do not end soon are cut.
    ///
    /// # Errors
    ///
    /// A request takes too long. The connections go on and the store stays open, so the data directory must
    /// not be given away: [`serve`](Self::serve).
    pub async fn seal(&mut self, may_cut: bool) -> Result<(), BoxError> {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.stop().await;
        }
        self.gate.send_replace(Gate::Sealing);
        let patience = if may_cut { CUT_PATIENCE } else { SEAL_PATIENCE };
        let mut ended = timeout(patience, self.traffic.empty()).await;
        if ended.is_err() && may_cut {
            log!("cuts what is left: {}", self.traffic.summary());
            self.gate.send_replace(Gate::Cut);
            ended = timeout(SEAL_PATIENCE, self.traffic.empty()).await;
        }
        if ended.is_err() {
            return Err(format!("cannot seal yet: {}", self.traffic.summary()).into());
        }
        self.store = None;
        Ok(())
    }

    /// Serves, for the first time or again, whatever was asked before.
    ///
    /// # Errors
    ///
    /// The data directory cannot be opened, or the listener cannot be polled.
    pub fn serve(&mut self) -> io::Result<()> {
        let store = match &self.store {
            Some(store) => store.clone(),
            None => self.store.insert(open_store(&self.config)?).clone(),
        };
        self.gate.send_replace(Gate::Open);
        if self.acceptor.is_none() {
            self.acceptor = Some(self.accept(store)?);
        }
        Ok(())
    }

    fn accept(&self, store: S3Service) -> io::Result<Acceptor> {
        // Not earlier: the setting belongs to the open file, which another process may be accepting from.
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(self.listener.try_clone()?)?;
        let (stop, stopped) = oneshot::channel();
        let (gate, traffic) = (self.gate.clone(), self.traffic.clone());
        let task = tokio::spawn(accept(listener, store, gate, traffic, stopped));
        Ok(Acceptor { stop, task })
    }
}

fn open_store(config: &Config) -> io::Result<S3Service> {
    let store = Store::open(&config.data_dir).map_err(|error| {
        let message = format!("cannot open the data directory {}: {error}", config.data_dir.display());
        io::Error::new(error.kind(), message)
    })?;
    let mut service = S3ServiceBuilder::new(store);
    service.set_auth(SimpleAuth::from_single(config.access_key.as_str(), config.secret_key.as_str()));
    Ok(service.build())
}

/// The task that accepts.
struct Acceptor {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Acceptor {
    /// Returns when nothing will be accepted any more.
    async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            log!("the accept task failed: {error}");
        }
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    store: S3Service,
    gate: watch::Sender<Gate>,
    traffic: Traffic,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut stalled = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                stalled = false;
                // Fails only on a connection that is gone already, which its own task then finds out.
                let _ = stream.set_nodelay(true);
                let entry = traffic.connection();
                tokio::spawn(connection::serve(stream, store.clone(), entry, gate.subscribe()));
            }
            Err(error) if is_shortage(&error) => {
                if !std::mem::replace(&mut stalled, true) {
                    log!("cannot accept: {error}; trying again every {ACCEPT_PAUSE:?}");
                }
                tokio::select! {
                    _ = &mut stopped => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
            // The others are about one connection, which has gone before it was accepted.
            Err(_) => {}
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::INVAL | Errno::BADF)
    )
}
