//! Subscriptions to changes of services, and the commands that use them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use handoff::control::api::{Request, State};
use serde_json::{Value, json};

use crate::support::{LIMIT, Rig, free_address, service, signal, wait_for};

/// `handoff events`, and the lines that it prints.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn begin(rig: &Rig, arguments: &[&str]) -> Follower {
        let mut child =
            rig.handoff(&[&["events"], arguments].concat()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                if line.is_err() || sender.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Follower { child, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("a line of `handoff events`")
    }

    /// The states and phases of a service, up to and including this one.
    fn until(&self, name: &str, state: &str) -> Vec<(String, String)> {
        let mut seen = Vec::new();
        loop {
            let line: Value = serde_json::from_str(&self.next()).unwrap();
            let event = &line["event"];
            if event["service"] == name {
                let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
                seen.push((word("state"), word("phase")));
                if seen.last().unwrap().0 == state {
                    return seen;
                }
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A second service, with data of its own.
fn write_db(rig: &Rig, binary: &Path) {
    let data = rig.path("data-of-db");
    std::fs::create_dir(&data).unwrap();
    let text = format!(
        "binary = {binary:?}\nargs = [{data:?}]\nautostart = false\nstore = false\n[listen]\nmain = \"{}\"\n",
        free_address()
    );
    std::fs::write(rig.path("config/services/db.toml"), text).unwrap();
}

#[test]
fn events_shows_each_state_and_phase_in_order() {
    let rig = Rig::new();
    let first = rig.release("1", "");
    rig.write_service("web", &first, "");
    let all = Follower::begin(&rig, &["--json"]);
    assert_eq!(
        all.until("web", "stopped"),
        [("stopped".into(), String::new())],
        "the present state comes first"
    );
    rig.call(Request::Start(service("web"))).unwrap();
    let started = all.until("web", "serving");
    assert!(started.contains(&("starting".into(), "warming".into())), "{started:?}");
    let second = rig.release("2", "");
    rig.upgrade("web", &second).unwrap();
    let upgraded = all.until("web", "upgrading");
    assert_eq!(upgraded.last().unwrap(), &("upgrading".into(), "greeting".into()), "{upgraded:?}");
    let upgraded = all.until("web", "serving");
    for phase in ["warming", "draining", "committing"] {
        assert!(upgraded.iter().any(|(_, it)| it == phase), "{phase}: {upgraded:?}");
    }
    rig.call(Request::Stop(service("web"))).unwrap();
    let stopped = all.until("web", "stopped");
    assert!(stopped.iter().any(|(state, _)| state == "stopping"), "{stopped:?}");
}

#[test]
fn events_of_one_service_are_lines_for_people() {
    let rig = Rig::new();
    let release = rig.release("1", "");
    rig.write_service("web", &release, "");
    write_db(&rig, &release);
    let web = Follower::begin(&rig, &["web"]);
    assert!(web.next().contains("  web  stopped, generation 0"));
    rig.call(Request::Start(service("db"))).unwrap();
    rig.call(Request::Start(service("web"))).unwrap();
    let mut line = web.next();
    let until = Instant::now() + LIMIT;
    while !line.contains("serving, generation 1, pid ") {
        assert!(line.contains("  web  ") && Instant::now() < until, "{line}");
        line = web.next();
    }
    let refused = rig.run(&["events", "nope"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}

#[test]
fn wait_ends_with_the_state_and_fails_after_its_time() {
    let rig = Rig::new();
    rig.write_service("web", &rig.release("1", ""), "");
    let late = rig.run(&["wait", "web", "--timeout", "200ms"]);
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert_eq!(late.status.code(), Some(1), "{said}");
    assert!(said.contains("Not all are serving after 200ms: web is stopped."), "{said}");
    assert_eq!(rig.run(&["wait", "web", "--for", "down"]).status.code(), Some(0));

    let waiting = rig.handoff(&["wait", "web", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    rig.call(Request::Start(service("web"))).unwrap();
    let ended = waiting.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let line: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((&line["event"]["service"], &line["event"]["state"]), (&"web".into(), &"serving".into()));
    assert_eq!(rig.run(&["wait", "nope"]).status.code(), Some(1));
}

#[test]
fn a_wait_ends_with_the_daemon() {
    let mut rig = Rig::new();
    rig.write_service("web", &rig.release("1", ""), "");
    let mut waiting =
        rig.handoff(&["wait", "web", "--timeout", "10m"]).stderr(Stdio::piped()).spawn().unwrap();
    // Without a sign of the subscription from outside: a wait that begins later ends with the same code.
    wait_for("the command to run", || waiting.try_wait().unwrap().is_none().then_some(()));
    rig.stop_daemon().unwrap();
    let until = Instant::now() + LIMIT;
    let status = loop {
        match waiting.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < until, "the wait goes on without a daemon"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(2));
}

/// A client of the socket, line by line.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn connect(rig: &Rig) -> Raw {
        let stream = UnixStream::connect(rig.path("run/control.sock")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Raw(BufReader::new(stream))
    }

    fn send(&mut self, id: u64, method: &str, params: Value) {
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        writeln!(self.0.get_mut(), "{request}").unwrap();
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// The answer to a request, and the notifications before it.
    fn answer(&mut self, id: u64) -> (Value, Vec<Value>) {
        let mut before = Vec::new();
        loop {
            let line = self.line();
            if line["id"] == id {
                return (line, before);
            }
            before.push(line);
        }
    }
}

#[test]
fn a_connection_has_several_subscriptions_beside_its_requests() {
    let rig = Rig::new();
    let release = rig.release("1", "");
    rig.write_service("web", &release, "");
    write_db(&rig, &release);
    let mut raw = Raw::connect(&rig);
    raw.send(1, "subscribe", json!({}));
    let (all, _) = raw.answer(1);
    assert_eq!(all["result"]["subscription"], 1);
    assert_eq!(all["result"]["states"].as_array().unwrap().len(), 2, "{all}");
    raw.send(2, "subscribe", json!({"services": ["web"]}));
    assert_eq!(raw.answer(2).0["result"]["subscription"], 2);
    // A start on the same connection: its progress and the events come before its answer.
    raw.send(3, "start", json!({"service": "web"}));
    let (started, before) = raw.answer(3);
    assert_eq!(started["result"]["outcome"], "started", "{started}");
    let of = |method: &str, subscription: u64| {
        let fits = |it: &&Value| {
            it["method"] == method && it["params"]["subscription"].as_u64().unwrap_or(0) == subscription
        };
        before.iter().filter(fits).count()
    };
    assert!(of("progress", 0) > 2 && of("event", 1) > 2, "{before:?}");
    assert_eq!(of("event", 1), of("event", 2));
    raw.send(4, "unsubscribe", json!({"subscription": 1}));
    raw.answer(4);
    raw.send(5, "start", json!({"service": "db"}));
    let (_, before) = raw.answer(5);
    let events =
        before.iter().filter(|it| it["method"] == "event" && it["params"]["event"]["service"] == "db");
    assert_eq!(events.count(), 0, "{before:?}");
    raw.send(6, "unsubscribe", json!({"subscription": 1}));
    assert_eq!(raw.answer(6).0["error"]["data"]["kind"], "invalid_params");
    raw.send(7, "subscribe", json!({"services": ["nope"]}));
    assert_eq!(raw.answer(7).0["error"]["data"]["kind"], "unknown_service");
}

/// A client that does not read costs the daemon nothing but a full socket.
#[test]
fn a_subscriber_that_does_not_read_delays_no_one() {
    let rig = Rig::new();
    rig.write_service("web", &rig.release("1", ""), "");
    let mut silent = Raw::connect(&rig);
    silent.send(1, "subscribe", json!({}));
    for _ in 0..3 {
        rig.call(Request::Start(service("web"))).unwrap();
        rig.call(Request::Stop(service("web"))).unwrap();
    }
    assert_eq!(rig.status("web").state, State::Stopped);
    let (answer, _) = silent.answer(1);
    assert_eq!(answer["result"]["subscription"], 1);
    assert_eq!(silent.line()["method"], "event");
    // A second daemon process is not needed for that: SIGTERM ends it although a subscriber is connected.
    let daemon = rig.daemon.as_ref().unwrap().id();
    signal(daemon, handoff::sys::process::Signal::SIGTERM);
    wait_for("the daemon to end", || (!rig.path("run/control.sock").exists()).then_some(()));
}
