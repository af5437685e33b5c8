//! The S3 server and its handoff callbacks.
//!
//! States: *opened* → [`serve`](S3Server::serve) → *serving* → [`drain`](S3Server::drain) → *draining* (still accepts;
//! clients reconnect) → [`seal`](S3Server::seal) → *sealed* (accepts nothing, writes nothing, has closed everything but
//! the listener). `serve` returns from every state to *serving*, even after a failed seal.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;

use handoff_service::Mode;
use handoff_service::http::Server;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

use crate::store::Store;
use crate::{BoxError, log};

/// The parameters of the server.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory with the buckets; it must exist.
    pub data_dir: PathBuf,
    /// The access key for signed requests.
    pub access_key: String,
    /// The secret of the access key.
    pub secret_key: String,
}

/// An S3 server on one directory and one listener. Errors of a client end its connection only.
pub struct S3Server {
    config: Config,
    address: SocketAddr,
    http: Server<Answering>,
}

impl S3Server {
    /// Opens the data; accepts nothing before [`serve`](Self::serve). Call it only when no other process writes to
    /// the data directory, because opening the store removes its temporary files.
    ///
    /// # Errors
    ///
    /// The data directory cannot be opened.
    pub fn open(config: Config, listener: TcpListener) -> io::Result<Self> {
        let (store, address) = (open_store(&config)?, listener.local_addr()?);
        let http = Server::new(listener, Answering { store: Some(store) });
        let http = http.long_requests(is_long).finish_requests();
        Ok(Self { config, address, http })
    }

    /// The address for clients.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Asks clients to reconnect. Waits until only short requests on new connections are in progress, or until
    /// `cancelled` completes. The server stays in this mode until [`seal`](Self::seal) or [`serve`](Self::serve).
    pub async fn drain(&mut self, cancelled: impl Future<Output = ()>) {
        self.http.drain(cancelled).await;
    }

    /// Stops accepting, finishes the work in progress, and closes the store. There is nothing to flush: the store
    /// syncs each change before it acknowledges it. After this the process does not write.
    ///
    /// With `may_cut`, it cuts connections that do not end soon.
    ///
    /// # Errors
    ///
    /// A request takes too long. The connections and the store stay open, so do not give the data directory away:
    /// call [`serve`](Self::serve).
    pub async fn seal(&mut self, may_cut: bool) -> Result<(), BoxError> {
        self.http.seal(Mode::Exclusive, may_cut).await?;
        self.http.replace(Answering { store: None });
        Ok(())
    }

    /// Serves, for the first time or again, and overrides an earlier drain or seal.
    ///
    /// # Errors
    ///
    /// The data directory cannot be opened, or the listener cannot be polled.
    pub fn serve(&mut self) -> io::Result<()> {
        if self.http.service().store.is_none() {
            self.http.replace(Answering { store: Some(open_store(&self.config)?) });
        }
        self.http.serve()
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

/// Whether a completely received request may take long. For a GET, the response shows that.
fn is_long(request: &Parts) -> bool {
    match request.method {
        Method::PUT => request.headers.contains_key("x-amz-copy-source"),
        Method::HEAD | Method::DELETE | Method::GET => false,
        _ => true,
    }
}

/// Answers from the store, and logs failures.
#[derive(Clone)]
struct Answering {
    /// `None` when sealed: then nothing is accepted.
    store: Option<S3Service>,
}

impl hyper::service::Service<Request<Incoming>> for Answering {
    type Response = Response<s3s::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let store = self.store.clone();
        Box::pin(async move {
            let what = format!("{} {}", request.method(), request.uri().path());
            let answer = match store {
                Some(store) => store.call(request.map(s3s::Body::http_body_unsync)).await,
                None => return Ok(failure(&what, &"the store is closed")),
            };
            let response = answer.unwrap_or_else(|error| failure(&what, &error));
            if response.status().is_server_error() {
                log!("{what}: answered {}", response.status());
            }
            Ok(response)
        })
    }
}

fn failure(what: &str, error: &dyn std::fmt::Debug) -> Response<s3s::Body> {
    log!("{what}: {error:?}");
    let mut response = Response::new(s3s::Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
