//! In exclusive mode, clients keep their connections and continue to send requests. Each upgrade commits soon, and cuts
//! no request that the program has begun.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Outcome};
use handoff::slots::census::Census;

use super::counted::is_privileged;
use super::plain::{Load, Plain};
use crate::support::{LIMIT, ask_over, version, wait_for};

/// The maximum time for the clients of one test.
const LOAD_LIMIT: Duration = Duration::from_secs(120);

/// What the clients of a test have seen.
#[derive(Default)]
pub(super) struct Observed {
    answered: usize,
    /// Requests without an answer, because their connection ended.
    pub(super) unanswered: Vec<String>,
}

/// A count of clients, the duration of each answer, and the pause before the next request, in milliseconds.
type Clients = (usize, u64, u64);

/// Runs `clients` while `act` runs.
pub(super) fn with_clients<T>(plain: &Plain, clients: &[Clients], act: impl FnOnce() -> T) -> (T, Observed) {
    let begun = plain.rig.path("begun");
    let (is_over, address) = (AtomicBool::new(false), plain.address);
    let (done, saw) = std::thread::scope(|scope| {
        let (begun, is_over) = (&begun, &is_over);
        let mut threads = Vec::new();
        for (kind, (count, answer_ms, pause_ms)) in clients.iter().copied().enumerate() {
            threads.extend((0..count).map(|n| {
                let name = format!("{kind}.{n}");
                scope.spawn(move || client(address, begun, &name, answer_ms, pause_ms, is_over))
            }));
        }
        let guard = EndAtDrop(is_over);
        let done = act();
        drop(guard);
        let mut saw = Observed::default();
        for one in threads.into_iter().map(|thread| thread.join().unwrap()) {
            saw.answered += one.answered;
            saw.unanswered.extend(one.unanswered);
        }
        (done, saw)
    });
    let begun = std::fs::read_to_string(&begun).unwrap();
    let begun: BTreeSet<&str> = begun.lines().collect();
    let cut: Vec<&String> = saw.unanswered.iter().filter(|asked| begun.contains(asked.as_str())).collect();
    assert!(cut.is_empty(), "begun and not answered: {cut:?}, of {} unanswered", saw.unanswered.len());
    (done, saw)
}

/// Ends the clients, also if the test fails.
struct EndAtDrop<'a>(&'a AtomicBool);

impl Drop for EndAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Panics if the first request of a connection fails.
fn client(
    address: SocketAddr,
    begun: &Path,
    name: &str,
    answer_ms: u64,
    pause_ms: u64,
    is_over: &AtomicBool,
) -> Observed {
    let mut saw = Observed::default();
    let mut kept: Option<BufReader<TcpStream>> = None;
    // Far longer than any of these tests: a client runs until its test is over.
    let until = Instant::now() + LOAD_LIMIT;
    for count in 0_u64.. {
        if is_over.load(Ordering::SeqCst) {
            break;
        }
        let is_new = kept.is_none();
        let connection = kept.get_or_insert_with(|| connect(address));
        let asked = format!("{name}.{count}");
        let line = format!("after {answer_ms} {} {asked}\n", begun.display());
        let mut answer = String::new();
        let answered =
            connection.get_mut().write_all(line.as_bytes()).and_then(|()| connection.read_line(&mut answer));
        match answered {
            Ok(1..) => saw.answered += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("{asked} had neither an answer nor an end within {LIMIT:?}")
            }
            ended => {
                assert!(!is_new, "a new connection failed: {ended:?}");
                saw.unanswered.push(asked);
                kept = None;
            }
        }
        assert!(Instant::now() < until, "the test has not ended within {LOAD_LIMIT:?}");
        std::thread::sleep(Duration::from_millis(pause_ms));
    }
    saw
}

fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(LIMIT)).unwrap();
    connection.set_nodelay(true).unwrap();
    BufReader::new(connection)
}

/// Upgrades several times. Each upgrade must commit, and the quickest must not include an unsuccessful search.
fn upgrade_times(plain: &Plain, count: usize, fault: &str) -> Vec<Outcome> {
    let upgrade = |n: usize| {
        let outcome = plain.upgrade(&n.to_string(), fault);
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        assert_eq!(version(plain.address), n.to_string());
        outcome
    };
    let outcomes: Vec<Outcome> = (1..=count).map(upgrade).collect();
    // An unsuccessful search takes 3 s. On a busy machine one successful search may be as slow, but not all.
    let sealing =
        |outcome: &Outcome| outcome.phases.iter().find(|phase| phase.phase == "sealing").unwrap().took_us;
    let quickest = outcomes.iter().map(sealing).min().unwrap();
    assert!(quickest < 2_500_000, "the search for the moment failed: {outcomes:?}");
    outcomes
}

#[test]
fn clients_that_ask_now_and_then_hold_nothing_up() {
    for adapter in ["inject", "listen-fds"] {
        let plain = Plain::serve(adapter, "exclusive", "");
        let (outcomes, saw) = with_clients(&plain, &[(8, 0, 200)], || upgrade_times(&plain, 3, ""));
        assert!(saw.answered >= 8, "{}", saw.answered);
        for outcome in outcomes {
            let connections = outcome.connections.expect("they are counted");
            assert!(connections.open <= 8 && connections.unanswered == 0, "{outcome:?}");
            assert!(!outcome.restarted, "{outcome:?}");
        }
    }
}

#[test]
fn clients_that_ask_back_to_back_let_it_end_between_two_requests() {
    if !is_privileged() {
        return;
    }
    for answer_ms in [1, 15, 40] {
        let plain = Plain::serve("inject", "exclusive", "");
        let newcomers = Load::start(plain.address, 1);
        let (outcomes, _) = with_clients(&plain, &[(8, answer_ms, 0)], || upgrade_times(&plain, 2, ""));
        for outcome in outcomes {
            assert_eq!(outcome.connections.unwrap().unanswered, 0, "{outcome:?}");
        }
        newcomers.finish();
    }
}

/// Each pause is shorter than the time between two looks, so nearly every look finds work.
#[test]
fn clients_that_ask_for_what_takes_long_let_it_end_between_two_requests() {
    if !is_privileged() {
        return;
    }
    let run = |adapter: &str, mode: &str, count: usize, answer_ms: u64| {
        let plain = Plain::serve(adapter, mode, "");
        // In exclusive mode the drain needs one look without a request older than 100 ms. Clients with different pauses
        // send at the same time every few seconds. In overlap mode the drain ends only with its grace.
        let grace = if mode == "exclusive" { "40s" } else { "2s" };
        plain.set(&format!("drain_grace = \"{grace}\"\n"));
        let clients: Vec<Clients> =
            [5, 20].into_iter().take(count).map(|pause_ms| (1, answer_ms, pause_ms)).collect();
        let ((), saw) = with_clients(&plain, &clients, || {
            for n in 1..=2 {
                let outcome = plain.upgrade(&n.to_string(), "");
                let what = format!("{adapter} {mode} {answer_ms} ms: {outcome:?}");
                assert_eq!(outcome.outcome, Ending::Committed, "{what}");
                assert_eq!(outcome.connections.map(|left| left.unanswered), Some(0), "{what}");
            }
        });
        assert!(saw.answered > 0, "{adapter} {mode} {answer_ms} ms");
    };
    std::thread::scope(|scope| {
        let cases = [
            ("inject", "exclusive", 2, 400),
            ("inject", "exclusive", 1, 1200),
            ("inject", "overlap", 2, 1200),
            ("listen-fds", "overlap", 2, 400),
        ];
        let running =
            cases.map(|(adapter, mode, count, ms)| scope.spawn(move || run(adapter, mode, count, ms)));
        running.into_iter().for_each(|case| case.join().unwrap());
    });
}

/// At any moment some request is older than a short one.
#[test]
fn many_clients_that_ask_for_what_takes_long_let_it_end() {
    if !is_privileged() {
        return;
    }
    let plain = Plain::serve("inject", "exclusive", "");
    // Different lengths spread the requests.
    let clients: Vec<_> = (0..8).map(|n| (1, 400 + 15 * n, 0)).collect();
    let ((), saw) = with_clients(&plain, &clients, || {
        for n in 1..=3 {
            let since = Instant::now();
            wait_for("them to spread", || (since.elapsed() > Duration::from_secs(4)).then_some(()));
            let outcome = plain.upgrade(&n.to_string(), "");
            assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
            assert_eq!(outcome.connections.map(|left| left.unanswered), Some(0), "{outcome:?}");
        }
    });
    assert!(saw.answered > 8, "{}", saw.answered);
}

/// The program reads the last message and never answers it, as in MQTT, syslog and WebSocket.
#[test]
fn a_client_that_speaks_last_is_reported_with_the_key_to_set() {
    let plain = Plain::serve("inject", "exclusive", "");
    let says = |plain: &Plain| {
        let mut connection = connect(plain.address);
        connection.get_mut().write_all(b"GET /bad\n").unwrap();
        let (client, server) = (connection.get_ref().local_addr().unwrap(), plain.address);
        wait_for("it to be read", || Census::has_read(client, server).unwrap().then_some(()));
        let since = Instant::now();
        wait_for("the request to age", || (since.elapsed() > Duration::from_millis(400)).then_some(()));
        (connection, client)
    };
    let (_connection, client) = says(&plain);
    let (outcome, told) = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| plain.upgrade("1", ""));
        let told = wait_for("the wait to be reported", || {
            plain.rig.status("s").problem.filter(|problem| problem.contains("requests that take long"))
        });
        (upgrade.join().unwrap(), told)
    });
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    let reason = outcome.reason.unwrap();
    for told in [&told, &reason] {
        assert!(told.contains(&format!("the request is one of {client}, which began ")), "{told}");
        assert!(told.contains("drain = \"nothing\""), "{told}");
    }
    let log = std::fs::read_to_string(plain.rig.path("state/services/s/log/current")).unwrap();
    assert!(log.contains(&client.to_string()), "{log}");
    // The key applies from the next start on.
    plain.set("drain = \"nothing\"\nstragglers = \"cut\"\ndrain_grace = \"1s\"\n");
    assert_eq!(plain.upgrade("1", "").outcome, Ending::Committed);
    let _second = says(&plain);
    plain.set("drain = \"nothing\"\n");
    let outcome = plain.upgrade("2", "");
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
}

#[test]
fn a_program_that_ends_in_order_gets_its_signal_soon_whatever_its_clients_do() {
    if !is_privileged() {
        return;
    }
    for head in ["", "drain = \"long-requests\"\n"] {
        let plain = Plain::serve("inject", "exclusive", "");
        plain.set(head);
        plain.upgrade("0a", "in-order");
        let newcomers = Load::start(plain.address, 1);
        let clients = [(2, 1, 0), (8, 1, 200)];
        with_clients(&plain, &clients, || upgrade_times(&plain, 2, "in-order"));
        newcomers.finish();
    }
}

/// Sends a request that takes `ms`, over its own connection. Returns when the program has accepted it.
fn ask_slowly(plain: &Plain, ms: u64) -> std::thread::JoinHandle<std::io::Result<String>> {
    let connection = TcpStream::connect(plain.address).unwrap();
    let (client, address) = (connection.local_addr().unwrap(), plain.address);
    let begun = plain.rig.path("slow");
    let line = format!("after {ms} {} slowly", begun.display());
    let asked = std::thread::spawn(move || ask_over(connection, &line));
    wait_for("it to be accepted", || Census::is_accepted(client, address).unwrap().then_some(()));
    wait_for("it to be begun", || begun.exists().then_some(()));
    // The drain waits only for long requests. A request younger than 100 ms may be over in a moment.
    let since = Instant::now();
    wait_for("it to be a long one", || (since.elapsed() > Duration::from_millis(150)).then_some(()));
    asked
}

#[test]
fn a_request_that_outlasts_the_grace_leaves_the_program_as_it_is() {
    let plain = Plain::serve("inject", "exclusive", "");
    plain.set("drain_grace = \"200ms\"\n");
    let before = (plain.shim(), plain.program());
    let slow = ask_slowly(&plain, 6000);
    let outcome = plain.upgrade("1", "");
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    assert_eq!((outcome.restarted, outcome.connections), (false, None), "{outcome:?}");
    assert_eq!((plain.shim(), plain.program()), before);
    assert!(slow.join().unwrap().unwrap().starts_with("0 "));
}

#[test]
fn stragglers_that_may_be_cut_keep_no_upgrade_from_its_commit() {
    let plain = Plain::serve("inject", "exclusive", "");
    plain.set("drain_grace = \"200ms\"\nstragglers = \"cut\"\n");
    let slow = ask_slowly(&plain, 600_000);
    let began = Instant::now();
    let outcome = plain.upgrade("1", "");
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(15), "{outcome:?}");
    assert_eq!(outcome.connections.unwrap().unanswered, 1, "it is reported: {outcome:?}");
    assert!(!slow.join().unwrap().is_ok_and(|answer| answer.starts_with("0 ")));
}

#[test]
fn long_requests_are_waited_for_while_the_program_still_accepts() {
    let plain = Plain::serve("inject", "exclusive", "");
    plain.set("drain = \"long-requests\"\ndrain_grace = \"30s\"\n");
    let slow = ask_slowly(&plain, 10_000);
    let newcomers = Load::start(plain.address, 1);
    let outcome = plain.upgrade("1", "");
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    let draining = outcome.phases.iter().find(|phase| phase.phase == "draining").unwrap();
    assert!(draining.took_us > 300_000, "{outcome:?}");
    assert!(slow.join().unwrap().unwrap().starts_with("0 "));
    newcomers.finish();
}

#[test]
fn a_restart_of_the_old_program_is_reported() {
    let probe = "[probe]\ntcp = true\n";
    let plain = Plain::serve("inject", "exclusive", probe);
    let before = (plain.shim(), plain.program());
    let outcome = plain.upgrade("1", "exit-at-once");
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    assert!(outcome.restarted && plain.program() != before.1 && plain.shim() == before.0, "{outcome:?}");
    let shown = plain.rig.run(&["history", "s", "--json"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("\"restarted\":true"), "{shown}");
}

#[test]
fn a_program_gets_the_drain_signal_before_the_stop_signal() {
    let plain = Plain::serve("inject", "exclusive", "");
    let told = plain.rig.path("told");
    let command = format!("echo $HANDOFF_SERVICE $HANDOFF_DRAIN $HANDOFF_PID >> {}", told.display());
    let set = |grace: &str| {
        let tells =
            format!("drain_signal = \"SIGUSR1\"\ndrain_command = [\"/bin/sh\", \"-c\", {command:?}]\n");
        plain.set(&format!("drain_grace = \"{grace}\"\n{tells}"));
    };
    set("20s");
    let first = plain.program();
    assert_eq!(plain.upgrade("1", "in-order").outcome, Ending::Committed);
    set("300ms");
    let second = plain.program();
    let slow = ask_slowly(&plain, 6000);
    let outcome = plain.upgrade("2", "in-order");
    assert_eq!((outcome.outcome, outcome.restarted), (Ending::RolledBack, false), "{outcome:?}");
    assert_eq!(plain.program(), second);
    let mut expected =
        vec![format!("s begin {first}"), format!("s begin {second}"), format!("s cancel {second}")];
    expected.sort();
    wait_for("the command to have been run", || {
        let told = std::fs::read_to_string(&told).unwrap_or_default();
        let mut lines: Vec<&str> = told.lines().collect();
        // The daemon does not wait for the command, so two commands in quick succession may finish in any order.
        lines.sort_unstable();
        (lines == expected).then_some(())
    });
    let log = plain.rig.path("state/services/s/log/current");
    wait_for("the signal to have come", || {
        std::fs::read_to_string(&log).ok()?.contains("plain 1 is asked to drain").then_some(())
    });
    assert!(slow.join().unwrap().unwrap().starts_with("1 "));
}

/// Held back data may be the rest of a request that the program has begun to read. It would wait for it forever.
#[test]
fn the_rest_of_a_request_that_was_begun_is_let_in() {
    if !is_privileged() {
        return;
    }
    // The search for the moment ends after a second. On a busy machine the rest may arrive too late.
    let mut late = Vec::new();
    while let Err(what) = lets_the_rest_in() {
        late.push(what);
        assert!(late.len() < 5, "{late:#?}");
    }
}

/// The error describes a request whose rest was not let in.
fn lets_the_rest_in() -> Result<(), String> {
    let plain = Plain::serve("inject", "exclusive", "");
    plain.set("drain_grace = \"300ms\"\nstragglers = \"cut\"\n");
    let binary = plain.rig.release_of("plain", "1", "");
    let mut connection = connect(plain.address);
    let begun = plain.rig.path("begun");
    let whole = format!("after 0 {} whole\n", begun.display());
    connection.get_mut().write_all(whole.as_bytes()).unwrap();
    connection.read_line(&mut String::new()).unwrap();
    // The kernel clock ticks at least every 10 ms. After this pause the order of events is certain.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(40) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let line = format!("after 0 {} parted\n", begun.display());
    let (part, rest) = line.split_at(line.len() / 2);
    let (client, server) = (connection.get_ref().local_addr().unwrap(), plain.address);
    connection.get_mut().write_all(part.as_bytes()).unwrap();
    wait_for("the part to be read", || Census::has_read(client, server).unwrap().then_some(()));
    let (outcome, answer) = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| plain.rig.upgrade("s", &binary).unwrap());
        wait_for("the seal", || {
            let is_sealing = plain.rig.status("s").phase.as_deref() == Some("sealing");
            (is_sealing || upgrade.is_finished()).then_some(())
        });
        // By now the data of clients is held back, and the limit is far away.
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(50) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // In parts: a later part makes the kernel retransmit a dropped one, which otherwise takes up to 600 ms.
        let sent = Instant::now();
        let mut answer = String::new();
        let mut send = |at: u32, byte: u8| {
            let written = connection.get_mut().write_all(&[byte]);
            while sent.elapsed() < at * Duration::from_millis(5) {
                std::thread::sleep(Duration::from_millis(1));
            }
            written
        };
        let written = (1..).zip(rest.bytes()).try_for_each(|(at, byte)| send(at, byte));
        let read = written.and_then(|()| connection.read_line(&mut answer)).map(|_| answer);
        (upgrade.join().unwrap(), read)
    });
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    let unanswered = outcome.connections.as_ref().map(|left| left.unanswered);
    let is_answered = answer.as_ref().is_ok_and(|answer| answer.starts_with("0 "));
    if is_answered && unanswered == Some(0) { Ok(()) } else { Err(format!("{answer:?} {outcome:?}")) }
}
