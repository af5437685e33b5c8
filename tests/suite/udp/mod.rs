//! Services with datagrams, upgraded by the real daemon, and clients that count missing answers.

mod python;

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::at_end::SetOnDrop;
use crate::support::{LIMIT, Rig, free_address, kill, pause, service, signal, version, wait_for};
use handoff::control::api::{Ending, Request};
use handoff::sys::process::Signal;

const ALL: [(&str, &str); 6] = [
    ("handoff", "overlap"),
    ("handoff", "exclusive"),
    ("listen-fds", "overlap"),
    ("listen-fds", "exclusive"),
    ("inject", "overlap"),
    ("inject", "exclusive"),
];

mod destination;
mod lost;

/// A service `s` with datagrams.
struct Service {
    rig: Rig,
    address: SocketAddr,
    program: &'static str,
}

impl Service {
    fn serve(adapter: &str, mode: &str) -> Self {
        Self::serve_also(adapter, mode, None)
    }

    /// `tcp` is an additional address.
    fn serve_also(adapter: &str, mode: &str, tcp: Option<SocketAddr>) -> Self {
        let (rig, address) = (Rig::new(), free_address());
        let program = if adapter == "handoff" { "testee" } else { "plain" };
        let args: Vec<String> = match adapter {
            "handoff" => vec![rig.path("data").display().to_string()],
            _ => ["-".to_owned(), format!("udp:{address}")]
                .into_iter()
                .chain(tcp.map(|tcp| tcp.to_string()))
                .collect(),
        };
        let notify = if adapter == "listen-fds" { "notify = true\n" } else { "" };
        // After `main`, because programs get their listeners in the order of their names.
        let tcp = tcp.map(|tcp| format!("web = \"{tcp}\"\n")).unwrap_or_default();
        let text = format!(
            "binary = {:?}\nargs = {args:?}\nadapter = {adapter:?}\nmode = {mode:?}\nautostart = false\nstore = false\n\
             lease = \"3s\"\n{notify}[env]\nTESTEE_UDP = \"1\"\n[listen]\nmain = \"udp:{address}\"\n{tcp}",
            rig.release_of(program, "0", ""),
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap_or_else(|error| panic!("{adapter} {mode}: {error}"));
        Self { rig, address, program }
    }

    fn release(&self, version: &str, fault: &str) -> PathBuf {
        self.rig.release_of(self.program, version, fault)
    }

    fn upgrade(&self, version: &str) {
        let outcome = self.rig.upgrade("s", &self.release(version, "")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    }

    /// The version that answers. `None` if no answer comes within the limit.
    fn asked(&self, limit: Duration) -> Option<String> {
        let client = Client::new(self.address, limit);
        client.ask("x").map(|answer| answer.split(' ').next().unwrap_or_default().to_owned())
    }

    fn version(&self) -> String {
        self.asked(LIMIT).expect("an answer")
    }

    /// Sends questions until `work` is done. Every question must be answered. Returns their number.
    fn asking<T>(&self, work: impl FnOnce() -> T) -> (T, usize) {
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| self.ask_until(&stop, &count))).collect();
            let at_end = SetOnDrop(&stop);
            let done = work();
            drop(at_end);
            let lost: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
            assert_eq!(lost, 0, "of {count:?}");
            (done, count.load(Ordering::Relaxed))
        })
    }

    fn ask_until(&self, stop: &AtomicBool, count: &AtomicUsize) -> usize {
        let client = Client::new(self.address, LIMIT);
        let mut lost = 0;
        while !stop.load(Ordering::Relaxed) {
            let question = count.fetch_add(1, Ordering::Relaxed).to_string();
            lost += usize::from(client.ask(&question).is_none());
            pause();
        }
        lost
    }
}

struct Client(UdpSocket);

impl Client {
    fn new(address: SocketAddr, limit: Duration) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(limit)).unwrap();
        Self(socket)
    }

    /// The answer to this question, and to no other.
    fn ask(&self, question: &str) -> Option<String> {
        self.0.send(question.as_bytes()).ok()?;
        let mut answer = [0; 1500];
        let length = self.0.recv(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.ends_with(&format!(" {question}")), "{answer} to {question}");
        Some(answer)
    }
}

#[test]
fn no_datagram_is_lost_by_twenty_upgrades() {
    // Most of the time is grace for answers of replaced processes.
    std::thread::scope(|scope| {
        for (adapter, mode) in ALL {
            scope.spawn(move || upgrade_twenty_times(adapter, mode));
        }
    });
}

fn upgrade_twenty_times(adapter: &str, mode: &str) {
    let service = Service::serve(adapter, mode);
    assert_eq!(service.version(), "0");
    let ((), count) = service.asking(|| {
        for n in 1..=20 {
            service.upgrade(&n.to_string());
            assert_eq!(service.version(), n.to_string(), "{adapter} {mode}");
        }
    });
    println!("{adapter} {mode}: 20 upgrades, {count} datagrams answered, 0 lost");
    service.rig.call(Request::Stop(crate::support::service("s"))).unwrap();
    assert!(!service.rig.daemon_log().contains("datagrams were lost"), "{adapter} {mode}");
}

#[test]
fn a_bad_version_rolls_back_and_no_datagram_is_lost() {
    for (adapter, mode) in ALL {
        let service = Service::serve(adapter, mode);
        service.asking(|| {
            let outcome = service.rig.upgrade("s", &service.release("bad", "exit-at-once")).unwrap();
            assert_eq!(outcome.outcome, Ending::RolledBack, "{adapter} {mode}: {outcome:?}");
            assert_eq!(service.version(), "0", "{adapter} {mode}");
        });
    }
}

/// The supervisor does not see whether a read datagram is answered, but it sees that a program is busy.
#[test]
fn a_program_that_is_busy_is_given_time_for_its_answer() {
    for adapter in ["listen-fds", "inject"] {
        let service = Service::serve(adapter, "exclusive");
        assert_eq!(service.version(), "0");
        std::thread::scope(|scope| {
            // Longer than the grace for an idle program, and much shorter than that for a busy one.
            let answer = scope.spawn(|| Client::new(service.address, LIMIT).ask("busy 300"));
            // The upgrade may come before or after the question. Neither loses anything.
            service.upgrade("1");
            assert!(answer.join().unwrap().is_some(), "{adapter}");
        });
        assert_eq!(service.version(), "1");
    }
}

#[test]
fn another_daemon_adopts_it_and_no_datagram_is_lost() {
    for (adapter, mode) in ALL {
        let mut service = Service::serve(adapter, mode);
        let address = service.address;
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let client = Client::new(address, LIMIT);
                while !stop.load(Ordering::Relaxed) {
                    let n = count.fetch_add(1, Ordering::Relaxed);
                    assert!(client.ask(&n.to_string()).is_some(), "{adapter} {mode}: {n} is lost");
                    pause();
                }
            });
            let at_end = SetOnDrop(&stop);
            for (round, version) in ["1", "2"].into_iter().enumerate() {
                let mut daemon = service.rig.daemon.take().unwrap();
                // In the second round the keeper dies as well, and only the process holds the descriptors.
                let keeper = (round == 1).then(|| keeper(&service.rig));
                daemon.kill().unwrap();
                daemon.wait().unwrap();
                if let Some(keeper) = keeper {
                    signal(keeper, Signal::SIGKILL);
                    let gone = || (!PathBuf::from(format!("/proc/{keeper}/fd/0")).exists()).then_some(());
                    wait_for("the keeper to be gone", gone);
                }
                service.rig.start_daemon();
                service.rig.settled("s");
                service.upgrade(version);
                assert_eq!(service.version(), version, "{adapter} {mode}");
            }
            drop(at_end);
            asking.join().unwrap();
        });
    }
}

fn keeper(rig: &Rig) -> u32 {
    let line = format!("{}\0", rig.path("run/keeper.sock").display());
    let found = crate::support::processes_of(rig.root.path()).into_iter().find(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found.ends_with(line.as_bytes()))
    });
    found.expect("a keeper")
}

#[test]
fn datagrams_wait_for_the_next_process_after_a_crash() {
    for (adapter, mode) in ALL {
        let service = Service::serve(adapter, mode);
        let victim: u32 = match adapter {
            "handoff" => service.rig.status("s").pid.unwrap(),
            _ => {
                let answer = Client::new(service.address, LIMIT).ask("x").unwrap();
                answer.split(' ').nth(1).unwrap().parse().unwrap()
            }
        };
        // Until its last thread has run again, the killed process may take the datagram with it.
        kill(victim);
        assert!(Client::new(service.address, LIMIT).ask("x").is_some(), "{adapter} {mode}");
    }
}

#[test]
fn one_service_takes_streams_and_datagrams() {
    for (adapter, mode) in ALL.into_iter().filter(|(adapter, _)| *adapter != "handoff") {
        let tcp = free_address();
        let service = Service::serve_also(adapter, mode, Some(tcp));
        assert_eq!((service.version(), version(tcp)), ("0".to_owned(), "0".to_owned()), "{adapter} {mode}");
        service.asking(|| {
            for n in 1..=3 {
                service.upgrade(&n.to_string());
                assert_eq!(version(tcp), n.to_string(), "{adapter} {mode}");
                assert_eq!(service.version(), n.to_string(), "{adapter} {mode}");
            }
        });
    }
}

#[test]
fn a_service_that_was_stopped_starts_at_the_same_address() {
    let service = Service::serve("inject", "overlap");
    service.upgrade("1");
    for _ in 0..5 {
        service.rig.call(Request::Stop(crate::support::service("s"))).unwrap();
        assert_eq!(service.asked(Duration::from_millis(50)), None);
        service.rig.call(Request::Start(crate::support::service("s"))).unwrap();
        assert_eq!(service.version(), "1");
    }
}
