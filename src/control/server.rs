//! The daemon end of the control socket.
//!
//! It runs on a `current_thread` runtime within a `LocalSet`. A connection is one task that sleeps in a read: a
//! silent client costs a file descriptor and no time. When all places are taken, the oldest silent client is
//! disconnected, or else the oldest one that does not read its answers. So no client can lock others out by
//! connecting. A client that does not read for a while loses its connection in any case. Each request runs in its own
//! task, which continues if the client hangs up.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc};
use tokio::task::{AbortHandle, spawn_local};

use super::access::{Access, PeerIds, Right};
use super::api::{Change, Notice, Progress, Request, Response, Subscription};
use super::caller::Caller;
use super::error::{Error, Kind};
use super::listener::Listener;
use super::rpc::{LINE_MAX_BYTES, event_line, parse_request, progress_line, response_line};
use super::subscriptions::Subscriptions;
use crate::sys::files::files_limit;
use crate::sys::peer::groups_of_peer;
use crate::sys::user::effective_user;

/// Maximum number of connected clients, if there are descriptors for them.
pub const CONNECTIONS_MAX: usize = 128;

/// Clients get one in this many descriptors of the daemon. The others are for the services.
const SHARE: u64 = 8;

/// Time limit for a client that does not read.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Performs requests.
pub trait Handler {
    /// Performs one request of `by`. Runs to its end even if the client hangs up. Everything sent to `progress`
    /// reaches the client before the answer.
    #[allow(async_fn_in_trait)] // Everything stays on one thread, so no Send bound is needed.
    async fn call(&self, request: Request, by: Caller, progress: ProgressSink) -> Result<Response, Error>;

    /// The changes of services from now on.
    fn changes(&self) -> Option<broadcast::Receiver<Change>> {
        None
    }
}

/// The progress channel of a handler. Never blocks and never fails, even if the client is gone.
#[derive(Clone, Debug)]
pub struct ProgressSink(mpsc::UnboundedSender<Progress>);

impl ProgressSink {
    /// One that no client reads.
    pub fn none() -> Self {
        Self(mpsc::unbounded_channel().0)
    }

    /// Sends progress to the client.
    pub fn send(&self, progress: Progress) {
        // A client that hung up does not stop the operation.
        let _ = self.0.send(progress);
    }
}

/// Serves clients until the future is dropped. Must run within a `LocalSet`. Fails only if the runtime does not
/// accept the socket.
pub async fn serve(
    listener: impl Borrow<Listener>,
    handler: Rc<impl Handler + 'static>,
) -> io::Result<Infallible> {
    let socket = UnixListener::from_std(listener.borrow().socket().try_clone()?)?;
    let access = listener.borrow().access();
    let clients = ConnectedClients::for_descriptors(files_limit());
    loop {
        match socket.accept().await {
            Ok((stream, _)) => admit(stream, &handler, &clients, access),
            Err(error) => {
                tracing::warn!(%error, "a control connection could not be accepted");
                // Out of descriptors: the connection stays in the queue, and an immediate retry would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The connected clients, in order of arrival.
#[derive(Clone)]
struct ConnectedClients {
    connected: Rc<RefCell<BTreeMap<u64, ConnectedClient>>>,
    max: usize,
}

struct ConnectedClient {
    task: AbortHandle,
    activity: ClientActivity,
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientActivity {
    /// It is silent.
    Nothing,
    /// It waits for the work it asked for.
    Work,
    /// A message to it waits for room in its socket.
    Reading,
}

impl ConnectedClients {
    /// No clients yet, in a process that may have `limit` descriptors.
    fn for_descriptors(limit: u64) -> Self {
        let share = usize::try_from(limit / SHARE).unwrap_or(CONNECTIONS_MAX);
        Self { connected: Rc::default(), max: share.clamp(1, CONNECTIONS_MAX) }
    }

    /// Makes room for one more. Returns false if all are at work.
    fn make_room(&self) -> bool {
        let mut clients = self.connected.borrow_mut();
        if clients.len() < self.max {
            return true;
        }
        let idle = |activity| {
            clients.iter().find(|(_, client)| client.activity == activity).map(|(&number, _)| number)
        };
        let leaves = idle(ClientActivity::Nothing).or_else(|| idle(ClientActivity::Reading));
        match leaves.and_then(|number| clients.remove(&number)) {
            Some(client) => {
                client.task.abort();
                true
            }
            None => false,
        }
    }

    fn next_number(&self) -> u64 {
        RefCell::borrow(&self.connected).last_key_value().map_or(0, |(number, _)| number + 1)
    }

    fn set(&self, number: u64, activity: ClientActivity) {
        if let Some(client) = self.connected.borrow_mut().get_mut(&number) {
            client.activity = activity;
        }
    }
}

fn admit(
    stream: UnixStream,
    handler: &Rc<impl Handler + 'static>,
    clients: &ConnectedClients,
    access: Access,
) {
    let peer = stream.peer_cred();
    let right = peer.as_ref().ok().and_then(|peer| {
        let (user, group) = (peer.uid(), peer.gid());
        let groups = groups_of_peer(&stream).unwrap_or_default();
        access.right(&PeerIds { user, group, groups }, effective_user())
    });
    let refusal = match &peer {
        Ok(peer) if right.is_none() => Some(Error::new(
            Kind::PermissionDenied,
            format!("User {} may not control this daemon.", peer.uid()),
            format!(
                "Ask as user {} or as root, or as a member of a group that its handoff.toml names.",
                effective_user()
            ),
        )),
        Err(error) => Some(Error::internal(format!("the peer's credentials cannot be read: {error}"))),
        Ok(_) if !clients.make_room() => Some(Error::new(
            Kind::TooManyClients,
            format!("All {} control connections are at work.", clients.max),
            "Try again when an operation has ended.",
        )),
        Ok(_) => None,
    };
    if let Some(error) = refusal {
        // The buffer of a new socket is empty, so this short line fits.
        let _ = stream.try_write(&response_line(&serde_json::Value::Null, &Err(error)));
        return;
    }
    let (uid, pid) = peer.map_or((0, None), |peer| (peer.uid(), peer.pid()));
    let right = right.unwrap_or(Right::Read);
    let by = Caller::of(uid, pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default());
    let number = clients.next_number();
    let (handler, host) = (Rc::clone(handler), clients.clone());
    let task = spawn_local(async move {
        // An error means that the client is gone, so it needs no answer.
        let _ = converse(stream, (by, right), handler, |activity| host.set(number, activity)).await;
        host.connected.borrow_mut().remove(&number);
    });
    clients
        .connected
        .borrow_mut()
        .insert(number, ConnectedClient { task: task.abort_handle(), activity: ClientActivity::Nothing });
}

/// The error for a request that this client may not make.
fn beyond(request: &Request, by: &Caller) -> Error {
    let method = request.method();
    let message =
        format!("User {} may look at the services of this daemon, and not operate them ({method}).", by.uid);
    let hint = "Ask as a member of the `group` of its handoff.toml, as the user of the daemon, or as root.";
    Error::new(Kind::PermissionDenied, message, hint)
}

async fn converse(
    stream: UnixStream,
    (by, right): (Caller, Right),
    handler: Rc<impl Handler + 'static>,
    set: impl Fn(ClientActivity),
) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut writer = Writer { stream: writer, set };
    let mut reader = BufReader::with_capacity(1024, reader);
    let (mut subscriptions, mut line) = (Subscriptions::default(), Vec::new());
    loop {
        tokio::select! {
            biased;
            is_there = read_line(&mut reader, &mut line) => match is_there? {
                true => {}
                false => return Ok(()),
            },
            notices = subscriptions.next() => {
                writer.notify(&notices).await?;
                (writer.set)(ClientActivity::Nothing);
                continue;
            }
        }
        let line = std::mem::take(&mut line);
        if line.len() > LINE_MAX_BYTES {
            let message = format!("The request line is longer than {LINE_MAX_BYTES} bytes.");
            let error =
                Error::new(Kind::InvalidRequest, message, "The connection is closed; send shorter lines.");
            return writer.write(&response_line(&serde_json::Value::Null, &Err(error))).await;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        (writer.set)(ClientActivity::Work);
        let incoming = parse_request(&line);
        let answer = match incoming.request {
            Ok(request) if request.right() > right => Err(beyond(&request, &by)),
            Ok(request) => answer_to(request, by.clone(), &handler, &mut writer, &mut subscriptions).await?,
            Err(error) => Err(error),
        };
        writer.write(&response_line(&incoming.id, &answer)).await?;
        (writer.set)(ClientActivity::Nothing);
    }
}

/// Answers a request. A subscription belongs to its connection, and is kept here.
async fn answer_to(
    request: Request,
    by: Caller,
    handler: &Rc<impl Handler + 'static>,
    writer: &mut Writer<impl Fn(ClientActivity)>,
    subscriptions: &mut Subscriptions,
) -> io::Result<Result<Response, Error>> {
    match request {
        Request::Unsubscribe(subscription) => {
            let ended = subscriptions.remove(subscription);
            Ok(ended.map(|()| Response::Subscription(Subscription { subscription, states: Vec::new() })))
        }
        Request::Subscribe(wanted) => {
            if let Err(error) = subscriptions.prepare(|| handler.changes()) {
                return Ok(Err(error));
            }
            let request = Request::Subscribe(wanted.clone());
            let answer = perform(request, by, handler, writer, subscriptions).await?;
            if answer.is_err() {
                subscriptions.receive_only_if_wanted();
            }
            Ok(answer.map(|response| match response {
                Response::Subscription(Subscription { states, .. }) => {
                    let subscription = subscriptions.add(wanted.services);
                    Response::Subscription(Subscription { subscription, states })
                }
                other => other,
            }))
        }
        request => perform(request, by, handler, writer, subscriptions).await,
    }
}

/// The way to a client, which may not read.
struct Writer<F> {
    stream: OwnedWriteHalf,
    set: F,
}

impl<F: Fn(ClientActivity)> Writer<F> {
    /// Waits for room, with a limit.
    async fn write(&mut self, line: &[u8]) -> io::Result<()> {
        (self.set)(ClientActivity::Reading);
        let written = tokio::time::timeout(READ_WITHIN, self.stream.write_all(line)).await;
        (self.set)(ClientActivity::Work);
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn notify(&mut self, notices: &[Notice]) -> io::Result<()> {
        for notice in notices {
            self.write(&event_line(notice)).await?;
        }
        Ok(())
    }
}

/// Reads the rest of one line of any content. A line longer than [`LINE_MAX_BYTES`] has no end within that. Returns
/// false at the end. If this is dropped, the beginning stays in `line`.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<bool> {
    let limit = (LINE_MAX_BYTES + 1).saturating_sub(line.len()) as u64;
    reader.take(limit).read_until(b'\n', line).await?;
    Ok(!line.is_empty())
}

/// Runs the handler in its own task and passes its progress on. An error means that the client is gone; the task
/// continues without it.
async fn perform(
    request: Request,
    by: Caller,
    handler: &Rc<impl Handler + 'static>,
    writer: &mut Writer<impl Fn(ClientActivity)>,
    subscriptions: &mut Subscriptions,
) -> io::Result<Result<Response, Error>> {
    let (sink, mut progress) = mpsc::unbounded_channel();
    let handler = Rc::clone(handler);
    let mut task = spawn_local(async move { handler.call(request, by, ProgressSink(sink)).await });
    let answer = loop {
        tokio::select! {
            biased;
            Some(step) = progress.recv() => writer.write(&progress_line(&step)).await?,
            ended = &mut task => break ended,
            notices = subscriptions.next() => writer.notify(&notices).await?,
        }
    };
    // The progress that arrived together with the answer.
    while let Ok(step) = progress.try_recv() {
        writer.write(&progress_line(&step)).await?;
    }
    Ok(answer.unwrap_or_else(|failure| Err(Error::internal(format!("the operation broke off: {failure}")))))
}
