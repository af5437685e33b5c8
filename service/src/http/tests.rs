use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ::tokio::sync::Notify;
use ::tokio::task::spawn_blocking;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use handoff_protocol::message::Mode;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

struct Rig {
    server: Server<TowerToHyperService<Router>>,
    address: SocketAddr,
    go_on: Arc<Notify>,
}

impl Rig {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let go_on = Arc::new(Notify::new());
        let waits = go_on.clone();
        let app = Router::new()
            .route("/", get(|| async { "hello" }))
            .route(
                "/slow",
                get(move || async move {
                    waits.notified().await;
                    "slow"
                }),
            )
            .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
            .route(
                "/events",
                get(|| async {
                    let events = Events(Some(Bytes::from_static(b"data: 1\n\n")));
                    ([("content-type", "text/event-stream")], Body::new(events))
                }),
            );
        let mut server = Server::tower(listener, app);
        server.serve().unwrap();
        Self { server, address, go_on }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    async fn drain(&mut self) {
        timeout(LIMIT, self.server.drain(std::future::pending())).await.unwrap();
    }

    async fn seal(&mut self, mode: Mode, cut: bool) -> Result<(), BoxError> {
        timeout(LIMIT, self.server.seal(mode, cut)).await.unwrap()
    }
}

/// One event, then silence.
struct Events(Option<Bytes>);

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, BoxError>>> {
        match self.0.take() {
            Some(event) => std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(event)))),
            None => std::task::Poll::Pending,
        }
    }
}

fn ask(stream: &mut TcpStream, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
}

/// Reads until `end` arrives.
fn read_to(stream: &mut TcpStream, end: &str) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with(end) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{text}");
        text.push(byte[0].into());
    }
    text
}

/// Reads until the connection ends cleanly.
fn read_all(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A drain closes a connection that was idle for a moment. On a busy machine the request may come after that: then it is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_ends_with_its_next_answer_and_an_idle_one_by_itself() {
    for _ in 0..10 {
        if is_answered_in_a_drain().await {
            return;
        }
    }
    panic!("a kept connection ends before it can send a request");
}

/// Whether a request on a kept connection was answered after a drain had begun. The answer must end the connection.
async fn is_answered_in_a_drain() -> bool {
    let mut rig = Rig::new();
    let (mut idle, mut asks) = (rig.connect(), rig.connect());
    let (mut idle, asks) = spawn_blocking(move || {
        for stream in [&mut idle, &mut asks] {
            ask(stream, "/");
            assert!(!read_to(stream, "hello").contains("close"));
        }
        (idle, asks)
    })
    .await
    .unwrap();
    let gate = rig.server.gate.subscribe();
    let clients = spawn_blocking(move || {
        let begun = Instant::now();
        while *gate.borrow() == Gate::Open {
            assert!(begun.elapsed() < LIMIT, "the drain has not begun");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut asks = asks;
        let mut answer = String::new();
        let asked = write!(asks, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let is_answered = asked.and_then(|()| asks.read_to_string(&mut answer)).is_ok() && !answer.is_empty();
        assert!(!is_answered || answer.contains("connection: close"), "{answer}");
        assert_eq!(read_all(&mut idle), "");
        is_answered
    });
    rig.drain().await;
    let is_answered = clients.await.unwrap();
    rig.seal(Mode::Exclusive, false).await.unwrap();
    is_answered
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_read_is_answered_before_the_end() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    let half = rig.connect();
    let (mut half, client) = spawn_blocking(move || {
        let mut half = half;
        write!(half, "POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345").unwrap();
        ask(&mut client, "/slow");
        (half, client)
    })
    .await
    .unwrap();
    // The server has recorded both requests before the drain begins.
    let begun = Instant::now();
    while rig.server.traffic.to_string() != "2 connections are open, 2 requests in progress" {
        assert!(begun.elapsed() < LIMIT, "{}", rig.server.traffic);
        ::tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let go_on = rig.go_on.clone();
    let clients = spawn_blocking(move || {
        let mut client = client;
        half.write_all(b"67890").unwrap();
        assert!(read_all(&mut half).ends_with("10"));
        go_on.notify_one();
        assert!(read_all(&mut client).ends_with("slow"));
    });
    rig.drain().await;
    clients.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_server_leaves_new_clients_in_the_queue_and_serves_them_when_it_resumes() {
    let mut rig = Rig::new();
    rig.drain().await;
    rig.seal(Mode::Exclusive, false).await.unwrap();
    let mut client = rig.connect();
    ask(&mut client, "/");
    assert_eq!(rig.server.traffic.to_string(), "0 connections are open, 0 requests in progress");
    rig.server.serve().unwrap();
    spawn_blocking(move || assert!(read_to(&mut client, "hello").starts_with("HTTP/1.1 200"))).await.unwrap();
}

#[tokio::test]
async fn a_seal_in_overlap_mode_serves_what_waits_in_the_queue() {
    let mut rig = Rig::new();
    // On this single thread nothing is accepted before the seal waits.
    let mut clients: Vec<_> = (0..20).map(|_| rig.connect()).collect();
    clients.iter_mut().for_each(|client| ask(client, "/"));
    rig.seal(Mode::Overlap, false).await.unwrap();
    for mut client in clients {
        let answer = read_all(&mut client);
        assert!(answer.contains("connection: close") && answer.ends_with("hello"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_events_ends_in_order() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    let client = spawn_blocking(move || {
        ask(&mut client, "/events");
        read_to(&mut client, "data: 1\n\n\r\n");
        client
    })
    .await
    .unwrap();
    rig.drain().await;
    spawn_blocking(move || assert_eq!(read_all(&mut { client }), "0\r\n\r\n")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_fails_the_seal_or_is_cut() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    ask(&mut client, "/slow");
    let begun = Instant::now();
    while !rig.server.traffic.to_string().ends_with("1 requests in progress") {
        assert!(begun.elapsed() < LIMIT);
        ::tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let error = rig.seal(Mode::Exclusive, false).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot seal yet: 1 connections are open, 1 requests in progress");
    rig.seal(Mode::Exclusive, true).await.unwrap();
    spawn_blocking(move || assert_eq!(read_all(&mut { client }), "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_client_gets_goaway_and_its_answers() {
    let mut rig = Rig::new();
    let stream = ::tokio::net::TcpStream::connect(rig.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let ended = ::tokio::spawn(connection);
    let request = |path: &str| {
        let uri = format!("http://a{path}");
        Request::builder().uri(uri).body(String::new()).unwrap()
    };
    let slow = sender.send_request(request("/slow"));
    assert!(sender.send_request(request("/")).await.unwrap().status().is_success());
    let go_on = rig.go_on.clone();
    let answered = ::tokio::spawn(async move {
        go_on.notify_one();
        slow.await.unwrap().status().is_success()
    });
    rig.drain().await;
    assert!(answered.await.unwrap());
    timeout(LIMIT, ended).await.unwrap().unwrap().unwrap();
    rig.seal(Mode::Exclusive, false).await.unwrap();
}
