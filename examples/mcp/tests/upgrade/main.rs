//! MCP clients notice nothing of an upgrade.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use handoff_example_mcp::stamp::Fault;
use reqwest::{RequestBuilder, Response};
use rig::{LIMIT, Rig};
use rmcp::model::{CallToolRequestParams, ClientConfig, ProgressNotificationParam, ProtocolVersion};
use rmcp::service::{NotificationContext, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, RoleClient, ServiceExt};
use serde_json::{Value, json};
use tokio::time::timeout;

/// A client that counts its progress notifications.
#[derive(Clone)]
struct Counting {
    versions: ProtocolVersion,
    notifications: Arc<AtomicUsize>,
}

impl ClientHandler for Counting {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::default().with_protocol_version(self.versions.clone())
    }

    async fn on_progress(&self, _: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.notifications.fetch_add(1, Ordering::Relaxed);
    }
}

type Client = RunningService<RoleClient, Counting>;

async fn connect(rig: &Rig, versions: ProtocolVersion) -> Client {
    let config = StreamableHttpClientTransportConfig::with_uri(rig.url());
    let client = Counting { versions, notifications: Arc::default() };
    client.serve(StreamableHttpClientTransport::from_config(config)).await.expect("a session")
}

async fn call(client: &Client, tool: &'static str, arguments: Value) -> String {
    let arguments = arguments.as_object().cloned().unwrap_or_default();
    let params = CallToolRequestParams::new(tool).with_arguments(arguments);
    let result = timeout(LIMIT, client.call_tool(params)).await.expect("an answer in time");
    let result = serde_json::to_value(result.unwrap_or_else(|error| panic!("{tool}: {error}"))).unwrap();
    result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}")).to_owned()
}

/// Upgrades while clients make calls: one waits for a slow answer, the others call continuously.
async fn upgrade_under_calls(versions: ProtocolVersion) {
    let rig = Arc::new(Rig::new());
    let slow = connect(&rig, versions.clone()).await;
    assert_eq!(call(&slow, "version", json!({})).await, "1.0.0");
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for _ in 0..3 {
        let (client, stop) = (connect(&rig, versions.clone()).await, stop.clone());
        callers.push(tokio::spawn(async move {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                let text = format!("call {calls}");
                assert_eq!(call(&client, "echo", json!({ "text": text })).await, text);
                calls += 1;
            }
            assert_eq!(call(&client, "version", json!({})).await, "3.0.0");
            calls
        }));
    }
    for (from, to) in [("1.0.0", "2.0.0"), ("2.0.0", "3.0.0")] {
        slow.service().notifications.store(0, Ordering::Relaxed);
        let long = call(&slow, "slow", json!({ "steps": 10, "step_ms": 150 }));
        let upgrading = async {
            let reached = async {
                while slow.service().notifications.load(Ordering::Relaxed) == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(LIMIT, reached).await.expect("the call has reached the old process");
            let (rig, to) = (rig.clone(), to.to_owned());
            tokio::task::spawn_blocking(move || rig.upgrade(&to, None)).await.unwrap()
        };
        let (answer, code) = tokio::join!(long, upgrading);
        assert_eq!((answer, code), (format!("10 steps by {from}"), Some(0)));
        assert_eq!(
            slow.service().notifications.load(Ordering::Relaxed),
            10,
            "no progress notification is lost"
        );
        assert_eq!(call(&slow, "version", json!({})).await, to);
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_of_a_protocol_with_sessions_fails() {
    upgrade_under_calls(ProtocolVersion::LATEST_WITH_INITIALIZE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_of_a_protocol_without_sessions_fails() {
    upgrade_under_calls(ProtocolVersion::V_2026_07_28).await;
}

fn headers(request: RequestBuilder, session: Option<&str>) -> RequestBuilder {
    let request = request
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2025-11-25");
    match session {
        Some(session) => request.header("mcp-session-id", session),
        None => request,
    }
}

async fn post(http: &reqwest::Client, rig: &Rig, session: Option<&str>, body: Value) -> Response {
    let request = headers(http.post(rig.url()), session).body(body.to_string());
    timeout(LIMIT, request.send()).await.expect("an answer in time").unwrap()
}

/// A session created by hand, so that the test has its id.
async fn begin(http: &reqwest::Client, rig: &Rig) -> String {
    let client = json!({ "name": "test", "version": "1" });
    let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params });
    let answer = post(http, rig, None, body).await;
    assert_eq!(answer.status(), 200);
    let session = answer.headers()["mcp-session-id"].to_str().unwrap().to_owned();
    let body = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(post(http, rig, Some(&session), body).await.status(), 202);
    session
}

async fn version(http: &reqwest::Client, rig: &Rig, session: &str) -> (u16, String) {
    let params = json!({ "name": "version", "arguments": {} });
    let body = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params });
    let answer = post(http, rig, Some(session), body).await;
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// An event stream, and its first event.
async fn listen(http: &reqwest::Client, rig: &Rig, session: &str, last: Option<&str>) -> (Response, String) {
    let mut request = headers(http.get(rig.url()), Some(session));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let mut stream = timeout(LIMIT, request.send()).await.expect("a stream in time").unwrap();
    assert_eq!(stream.status(), 200);
    let mut event = String::new();
    while last.is_none() && !event.contains("\n\n") {
        let chunk = timeout(LIMIT, stream.chunk()).await.expect("an event in time").unwrap();
        event.push_str(&String::from_utf8_lossy(&chunk.expect("an event")));
    }
    (stream, event)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_go_on_and_streams_end_in_order_and_are_taken_up_again() {
    let rig = Arc::new(Rig::new());
    let http = reqwest::Client::new();
    let session = begin(&http, &rig).await;
    let idle = begin(&http, &rig).await;
    let (mut stream, event) = listen(&http, &rig, &session, None).await;
    assert!(event.contains("id: 0") && event.contains("retry: 200"), "{event}");

    let upgrading = tokio::task::spawn_blocking({
        let rig = rig.clone();
        move || rig.upgrade("2.0.0", None)
    });
    // It ends without an error, long before the grace of the drain.
    while timeout(LIMIT, stream.chunk()).await.expect("its end in time").unwrap().is_some() {}
    // It reconnects, perhaps over a connection that the old process is about to end.
    let until = Instant::now() + LIMIT;
    let stream = loop {
        let (mut stream, _) = listen(&http, &rig, &session, Some("0")).await;
        match timeout(Duration::from_millis(500), stream.chunk()).await {
            Err(_) => break stream,
            Ok(end) => assert!(end.unwrap().is_none() && Instant::now() < until, "it ends in order"),
        }
        // As long as the server requested.
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(upgrading.await.unwrap(), Some(0));
    let (status, text) = version(&http, &rig, &session).await;
    assert!(status == 200 && text.contains("2.0.0"), "{status} {text}");

    // An unused session is handed on as well, and an ended one is not.
    let ended = headers(http.delete(rig.url()), Some(&session)).send().await.unwrap();
    assert_eq!(ended.status(), 202);
    drop(stream);
    let upgrade = rig.clone();
    let code = tokio::task::spawn_blocking(move || upgrade.upgrade("3.0.0", None)).await.unwrap();
    assert_eq!(code, Some(0));
    let (status, text) = version(&http, &rig, &idle).await;
    assert!(status == 200 && text.contains("3.0.0"), "{status} {text}");
    assert_eq!(version(&http, &rig, &session).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_is_not_fit_is_not_noticed() {
    let rig = Arc::new(Rig::new());
    let client = connect(&rig, ProtocolVersion::LATEST_WITH_INITIALIZE).await;
    let upgrade = rig.clone();
    let upgrading = tokio::task::spawn_blocking(move || upgrade.upgrade("2.0.0", Some(Fault::Unhealthy)));
    while !upgrading.is_finished() {
        assert_eq!(call(&client, "version", json!({})).await, "1.0.0");
    }
    assert_eq!(upgrading.await.unwrap(), Some(4));
    assert_eq!(call(&client, "version", json!({})).await, "1.0.0");
}
