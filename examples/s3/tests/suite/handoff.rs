//! Drain, seal and resume as clients see them, byte by byte.

use std::future::pending;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use handoff_example_s3::server::{Config, S3Server};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(20);

/// A server with the bucket `box`.
async fn serve() -> (TempDir, S3Server, Signer) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("box")).unwrap();
    let config =
        Config { data_dir: dir.path().to_owned(), access_key: "access".into(), secret_key: "secret".into() };
    let mut server = S3Server::open(config, TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    server.serve().unwrap();
    let signer = Signer::new(server.local_addr());
    (dir, server, signer)
}

struct Signer {
    address: SocketAddr,
    bucket: Bucket,
    credentials: Credentials,
}

impl Signer {
    fn new(address: SocketAddr) -> Self {
        let url = format!("http://{address}").parse().unwrap();
        let bucket = Bucket::new(url, UrlStyle::Path, "box", "us-east-1").unwrap();
        Self { address, bucket, credentials: Credentials::new("access", "secret") }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn head(&self, method: &str, url: &str, length: usize) -> String {
        let (address, path) = (self.address, &url[format!("http://{}", self.address).len()..]);
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n")
    }

    fn put(&self, key: &str, length: usize) -> String {
        self.head("PUT", self.bucket.put_object(Some(&self.credentials), key).sign(LIMIT).as_str(), length)
    }

    fn get(&self, key: &str) -> String {
        self.head("GET", self.bucket.get_object(Some(&self.credentials), key).sign(LIMIT).as_str(), 0)
    }
}

struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn is_last(&self) -> bool {
        self.head.contains("\r\nconnection: close\r\n")
    }
}

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Reads one complete response with a content length.
async fn answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let read = async {
        loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(bytes[..end + 2].to_vec()).unwrap().to_lowercase();
                let length =
                    head.split("content-length: ").nth(1).map_or("0", |rest| rest.lines().next().unwrap());
                let body = bytes[end + 4..].to_vec();
                if body.len() >= length.parse().unwrap() {
                    return Answer { head, body };
                }
            }
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "cut after {:?}", bytes.len());
        }
    };
    timeout(LIMIT, read).await.expect("no answer")
}

async fn exchange(stream: &mut TcpStream, request: &str) -> Answer {
    send(stream, request).await;
    let answer = answer(stream).await;
    assert!(answer.head.starts_with("http/1.1 200"), "{}", answer.head);
    answer
}

/// Waits for the clean end of a connection.
async fn end(stream: &mut TcpStream) {
    let mut byte = [0];
    assert_eq!(timeout(LIMIT, stream.read(&mut byte)).await.expect("stays open").unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_a_slow_upload_finish_and_still_accepts() {
    let (_dir, mut server, s3) = serve().await;
    let mut upload = s3.connect().await;
    send(&mut upload, &s3.put("slow", 10)).await;
    send(&mut upload, "12345").await;
    // Once answered, the earlier upload is certainly accepted and recorded.
    exchange(&mut s3.connect().await, &(s3.put("first", 3) + "abc")).await;

    let mut drain = tokio::spawn(async move {
        server.drain(pending()).await;
        server
    });
    loop {
        let mut fresh = s3.connect().await;
        if exchange(&mut fresh, &s3.get("first")).await.is_last() {
            end(&mut fresh).await;
            break;
        }
    }
    assert!(timeout(Duration::from_millis(700), &mut drain).await.is_err(), "the upload is not finished");
    let finished = exchange(&mut upload, "67890").await;
    assert!(finished.is_last());
    end(&mut upload).await;

    let mut server = timeout(LIMIT, drain).await.expect("drained").unwrap();
    server.seal(false).await.unwrap();
    server.serve().unwrap();
    assert_eq!(exchange(&mut s3.connect().await, &s3.get("slow")).await.body, b"1234567890");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_connections_get_a_close_and_idle_ones_end_in_order() {
    let (_dir, mut server, s3) = serve().await;
    let (mut active, mut idle, mut silent) = (s3.connect().await, s3.connect().await, s3.connect().await);
    assert!(!exchange(&mut active, &(s3.put("a", 1) + "x")).await.is_last());
    assert!(!exchange(&mut idle, &s3.get("a")).await.is_last());

    let began = Instant::now();
    let client = async {
        loop {
            sleep(Duration::from_millis(50)).await;
            if exchange(&mut active, &s3.get("a")).await.is_last() {
                return end(&mut active).await;
            }
        }
    };
    tokio::join!(server.drain(pending()), client);
    assert!(
        began.elapsed() >= Duration::from_millis(400),
        "an idle client has time for a request: {began:?}"
    );
    end(&mut idle).await;
    end(&mut silent).await;
    server.seal(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_connects_while_sealed_is_served_after_the_resume() {
    let (_dir, mut server, s3) = serve().await;
    for round in 0..5 {
        server.drain(pending()).await;
        server.seal(false).await.unwrap();
        let key = format!("key-{round}");
        let mut waiting = s3.connect().await;
        send(&mut waiting, &(s3.put(&key, 2) + "ok")).await;
        assert!(timeout(Duration::from_millis(50), waiting.readable()).await.is_err(), "sealed");
        server.serve().unwrap();
        assert!(!answer(&mut waiting).await.is_last());
        assert_eq!(exchange(&mut waiting, &s3.get(&key)).await.body, b"ok");
        drop(waiting);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_drain_returns_at_once_and_a_resume_makes_it_as_before() {
    let (_dir, mut server, s3) = serve().await;
    let mut upload = s3.connect().await;
    send(&mut upload, &s3.put("slow", 4)).await;
    exchange(&mut s3.connect().await, &(s3.put("first", 3) + "abc")).await;
    timeout(LIMIT, server.drain(sleep(Duration::from_millis(20)))).await.expect("cancelled");
    server.serve().unwrap();

    assert!(!exchange(&mut upload, "done").await.is_last());
    assert_eq!(exchange(&mut upload, &s3.get("slow")).await.body, b"done");
    assert!(!exchange(&mut s3.connect().await, &s3.get("first")).await.is_last());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_that_may_not_cut_fails_and_one_that_may_cuts() {
    let (dir, mut server, s3) = serve().await;
    let mut upload = s3.connect().await;
    send(&mut upload, &s3.put("slow", 4)).await;
    exchange(&mut s3.connect().await, &(s3.put("first", 3) + "abc")).await;
    let error = server.seal(false).await.unwrap_err().to_string();
    assert!(error.contains("1 requests in progress"), "{error}");
    server.serve().unwrap();
    exchange(&mut s3.connect().await, &s3.get("first")).await;

    server.seal(true).await.unwrap();
    assert!(!matches!(upload.read(&mut [0; 64]).await, Ok(1..)), "the upload was cut");
    assert_eq!(unfinished(dir.path()), 0, "and its file is gone");
    server.serve().unwrap();
    exchange(&mut s3.connect().await, &s3.get("first")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_leaves_no_file_behind() {
    let (dir, mut server, s3) = serve().await;
    let mut upload = s3.connect().await;
    send(&mut upload, &(s3.put("slow", 4) + "do")).await;
    exchange(&mut s3.connect().await, &(s3.put("first", 3) + "abc")).await;
    drop(upload);
    server.drain(pending()).await;
    server.seal(false).await.unwrap();
    assert_eq!(unfinished(dir.path()), 0);
}

fn unfinished(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with(".tmp")).count()
}
