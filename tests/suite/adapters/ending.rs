//! A program that takes long to end gets all the time that its service file grants. It is never killed earlier.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Killed, Outcome, Request, Response};
use handoff::history::Entry;
use handoff::slots::census::Census;

use crate::support::{Rig, ask, ask_over, executable, free_address, service};

/// Answers each line with its pid; `slow` once the file `<out>.answer` exists, and `slow 30` after 30 s. At SIGTERM it
/// saves once, for the number of seconds in its second argument; with `-1` it ignores the signal. It logs other
/// signals. It binds nothing while the file `<out>.opens` exists, and says nothing while `<out>.holds` does.
const SERVER: &str = r#"#!/usr/bin/python3
import os, signal, socket, sys, threading, time
(host, port), (saves, out), does = sys.argv[1].rsplit(":", 1), sys.argv[2:4], sys.argv[4:]
def note(text):
    with open(out, "a") as file:
        file.write(f"{os.getpid()} {text}\n")
def end(number, frame):
    if os.path.exists(out) and "saved" in open(out).read():
        os._exit(0)
    note("asked")
    if float(saves) < 0:
        return
    threading.Event().wait(float(saves))
    note("saved")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
for other in signal.SIGHUP, signal.SIGUSR1:
    signal.signal(other, lambda number, frame: note(signal.Signals(number).name))
while os.path.exists(out + ".opens"):
    threading.Event().wait(0.02)
for seconds in (float(text[6:]) for text in does if text.startswith("works-")):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(300000))
        threading.Event().wait(0.2)
if "rests" in does:
    while True:
        signal.pause()
if "elsewhere" in does:
    host = "127.0.0.2"
def serve(client):
    with client, client.makefile("rw") as lines:
        for line in lines:
            while line == "slow\n" and not os.path.exists(out + ".answer"):
                threading.Event().wait(0.05)
            if line.startswith("slow "):
                threading.Event().wait(float(line[5:]))
            lines.write(f"{os.getpid()}\n")
            lines.flush()
listener = socket.socket()
listener.bind((host, int(port)))
listener.listen()
if "fork" in does and os.fork():
    os._exit(0)
def accept():
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
while os.path.exists(out + ".holds"):
    threading.Event().wait(0.02)
for text in (text for text in does if "=" in text):
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    text = text.replace("SELF", str(os.getpid())).replace("PARENT", str(os.getppid()))
    notify.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
while True:
    signal.pause()
"#;

/// The service `s`, which runs that program.
pub(crate) struct Slow {
    pub(crate) rig: Rig,
    pub(crate) address: SocketAddr,
}

impl Slow {
    pub(crate) fn serve(mode: &str, saves: &str, keys: &str) -> Self {
        Self::start(mode, saves, keys, &[], "")
    }

    /// The same, below a script in which `SERVER` stands for the server with its arguments.
    pub(crate) fn wrapped(mode: &str, saves: &str, keys: &str, does: &[&str], script: &str) -> Self {
        Self::start(mode, saves, keys, does, script)
    }

    fn start(mode: &str, saves: &str, keys: &str, does: &[&str], script: &str) -> Self {
        let slow = Self::write(mode, saves, keys, does, script);
        slow.rig.call(Request::Start(service("s"))).unwrap();
        slow
    }

    /// Writes the service file, and does not start the service.
    pub(crate) fn write(mode: &str, saves: &str, keys: &str, does: &[&str], script: &str) -> Self {
        let rig = Rig::new();
        let (address, mut server) = (free_address(), rig.path("server"));
        std::fs::write(&server, SERVER).unwrap();
        executable(&server);
        if !script.is_empty() {
            let wrapper = rig.path("wrapper");
            let text = script.replace("SERVER", &format!("{} \"$@\"", server.display()));
            std::fs::write(&wrapper, format!("#!/bin/sh\n{text}\n")).unwrap();
            executable(&wrapper);
            server = wrapper;
        }
        let does: String = does.iter().map(|what| format!(", {what:?}")).collect();
        let text = format!(
            "binary = {server:?}\nargs = [\"{address}\", \"{saves}\", {:?}{does}]\nstore = false\nautostart = false\n\
             adapter = \"inject\"\nmode = \"{mode}\"\n{keys}[listen]\nmain = \"{address}\"\n",
            rig.path("data/said")
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        Self { rig, address }
    }

    pub(crate) fn pid(&self) -> u32 {
        ask(self.address, "x").unwrap().parse().unwrap()
    }

    /// Waits until the shim has found this server, by its listener if its parent has ended. The server still serves.
    fn found(&self, server: u32) {
        super::wait_for("the server to be found", || {
            (self.rig.status("s").pid == Some(server)).then_some(())
        });
        assert_eq!(self.pid(), server);
    }

    /// Sends the request `line`, and returns when the program has worked on it long enough for a long request.
    pub(crate) fn ask_slowly(&self, line: &'static str) -> std::thread::JoinHandle<std::io::Result<String>> {
        let connection = std::net::TcpStream::connect(self.address).unwrap();
        let (client, address) = (connection.local_addr().unwrap(), self.address);
        let asked = std::thread::spawn(move || ask_over(connection, line));
        super::wait_for("it to be read", || Census::has_read(client, address).unwrap().then_some(()));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(20));
        }
        asked
    }

    /// Lets the program answer such a request. Returns the answer.
    pub(crate) fn answered(&self, asked: std::thread::JoinHandle<std::io::Result<String>>) -> String {
        let file = self.rig.path("data/said.answer");
        std::fs::write(&file, "").unwrap();
        let answer = asked.join().unwrap().unwrap();
        std::fs::remove_file(file).unwrap();
        answer
    }

    pub(crate) fn outcome(&self, request: Request) -> Outcome {
        match self.rig.call(request).unwrap() {
            Response::Outcome(outcome) => *outcome,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn restart(&self) -> Outcome {
        self.outcome(Request::Restart(service("s")))
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.rig.path("data/said")).unwrap_or_default()
    }

    pub(crate) fn last_entry(&self) -> Entry {
        let history = handoff::control::api::History { service: Some(service("s")), limit: Some(1) };
        match self.rig.call(Request::History(history)).unwrap() {
            Response::History(mut entries) => entries.pop().unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// It saves for longer than any earlier fixed limit.
#[test]
fn a_program_that_saves_for_long_is_let_do_so() {
    const GRANTS: &str = "stop_grace = \"20s\"\ndrain_grace = \"3s\"\n";
    fn restarts(mode: &str) {
        let slow = Slow::serve(mode, "6", GRANTS);
        let first = slow.pid();
        let outcome = slow.restart();
        assert_eq!((outcome.outcome, outcome.killed), (Ending::Committed, vec![]), "{mode}");
        assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"), "{mode}");
        assert_ne!(slow.pid(), first, "{mode}");
        // The rig stops the daemon, which ends the second program in order as well.
    }
    fn stops() {
        let slow = Slow::serve("exclusive", "6", GRANTS);
        let first = slow.pid();
        let outcome = slow.outcome(Request::Stop(service("s")));
        assert_eq!((outcome.outcome, outcome.killed), (Ending::Stopped, vec![]));
        assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"));
    }
    fn daemon_ends() {
        let mut slow = Slow::serve("overlap", "6", GRANTS);
        let first = slow.pid();
        assert!(slow.rig.stop_daemon().unwrap().success());
        assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"));
    }
    fn signals_the_shim() {
        let slow = Slow::serve("exclusive", "6", GRANTS);
        let first = slow.pid();
        crate::support::signal(slow.rig.status("s").shim.unwrap(), handoff::sys::process::Signal::SIGTERM);
        super::wait_for("another program", || slow.said().contains("saved").then_some(()));
        assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"));
    }
    std::thread::scope(|scope| {
        let cases: [fn(); 5] =
            [|| restarts("exclusive"), || restarts("overlap"), stops, daemon_ends, signals_the_shim];
        let running: Vec<_> = cases.into_iter().map(|case| scope.spawn(case)).collect();
        running.into_iter().for_each(|case| case.join().unwrap());
    });
}

#[test]
fn a_kill_is_in_every_report() {
    let slow =
        Slow::serve("exclusive", "-1", "drain = \"nothing\"\nstop_grace = \"600ms\"\ndrain_grace = \"2s\"\n");
    let first = slow.pid();
    let begun = Instant::now();
    let outcome = slow.restart();
    let took = begun.elapsed();
    // The rest of the drain time plus the stop grace. Without the service file the grace would be 30 s.
    let killed_in_time = |killed: &[Killed], pid: u32, least: u64| match killed {
        [killed] => {
            killed.pid == pid && killed.name == "server" && (least..least + 8_000).contains(&killed.after_ms)
        }
        _ => false,
    };
    assert_eq!(outcome.outcome, Ending::Committed);
    // The drain may start long before the stop signal. The stop grace starts with the signal.
    assert!(killed_in_time(&outcome.killed, first, 600), "{outcome:?}");
    assert!(took >= Duration::from_millis(2_500), "{took:?}");
    assert_eq!(slow.last_entry().killed, outcome.killed);
    assert_eq!(slow.rig.status("s").last_handoff.unwrap().killed, outcome.killed);
    let status = String::from_utf8(slow.rig.run(&["status", "s"]).stdout).unwrap();
    let sentence = format!("Process {first} (server) was killed");
    assert!(status.contains(&sentence), "{status}");
    let history = String::from_utf8(slow.rig.run(&["history", "s", "--last"]).stdout).unwrap();
    assert!(history.contains(&sentence), "{history}");

    let second = slow.pid();
    let output = slow.rig.run(&["stop", "s"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.contains(&format!("Process {second} (server) was killed")), "{text}");
    let last = slow.rig.status("s").last_handoff.unwrap();
    assert!(killed_in_time(&last.killed, second, 600), "{last:?}");
    let left: Vec<PathBuf> =
        std::fs::read_dir(slow.rig.path("run/adopt")).unwrap().flatten().map(|it| it.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_process_that_serves_gets_the_signal_and_not_its_wrapper() {
    const GRANTS: &str = "stop_grace = \"10s\"\ndrain_grace = \"1s\"\n";
    let stops = |keys: &str, script: &str| {
        let slow = Slow::wrapped("exclusive", "0.2", &format!("{GRANTS}{keys}"), &[], script);
        let first = slow.pid();
        super::wait_for("the server to be found", || {
            let main_is_wanted = keys.contains("\"main\"");
            (main_is_wanted || slow.rig.status("s").pid == Some(first)).then_some(())
        });
        let outcome = slow.outcome(Request::Stop(service("s")));
        assert_eq!((outcome.outcome, outcome.killed), (Ending::Stopped, vec![]), "{keys}{script}");
        assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"), "{keys}{script}");
    };
    let cases = [
        ("", "SERVER\nexit $?"),
        // As `npm start` does.
        ("", "sh -c '\"$0\" \"$@\"; exit $?' SERVER; exit $?"),
        ("", "SERVER &\nwait"),
        ("stop_mode = \"group\"\n", "SERVER\nexit $?"),
        // The shell gets the signal and ends; then its server ends.
        ("stop_mode = \"main\"\n", "SERVER\nexit $?"),
        // A parent that reaps no children: ended processes stay in its tree.
        ("", "SERVER &\nexec sleep 1000"),
        // When the first server ends, the script starts another one, which then gets the signal.
        ("", "while true; do SERVER; done"),
    ];
    std::thread::scope(|scope| {
        let running: Vec<_> =
            cases.iter().map(|(keys, script)| scope.spawn(|| stops(keys, script))).collect();
        running.into_iter().for_each(|case| case.join().unwrap());
    });
}

#[test]
fn a_process_that_is_none_of_the_program_is_never_named() {
    let mut stranger = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let named = format!("MAINPID={}", stranger.id());
    let slow =
        Slow::wrapped("exclusive", "0", "notify = true\nstop_grace = \"5s\"\n", &[&named, "READY=1"], "");
    let first = slow.pid();
    assert_eq!(slow.rig.status("s").pid, Some(first));
    let outcome = slow.outcome(Request::Stop(service("s")));
    assert_eq!((outcome.outcome, outcome.killed), (Ending::Stopped, vec![]));
    assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"));
    let alive = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(alive, "a process outside the program was ended");
    let log = super::wait_for("the log line", || {
        let log = std::fs::read_to_string(slow.rig.path("state/services/s/log/current")).unwrap_or_default();
        log.contains("is ignored").then_some(log)
    });
    assert!(log.contains(&named), "{log}");
}

#[test]
fn a_daemon_without_a_main_process_is_found_and_ends_in_order() {
    let slow = Slow::wrapped("exclusive", "0", "stop_grace = \"10s\"\n", &["fork"], "");
    let first = slow.pid();
    slow.found(first);
    let outcome = slow.outcome(Request::Stop(service("s")));
    assert_eq!((outcome.outcome, outcome.killed), (Ending::Stopped, vec![]));
    assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"));
}

#[test]
fn a_signal_for_the_service_reaches_the_program() {
    let slow = Slow::wrapped("exclusive", "0", "reload_signal = \"SIGUSR1\"\n", &[], "SERVER\nexit $?");
    let first = slow.pid();
    slow.found(first);
    let says = |text: &str| {
        super::wait_for(text, || {
            slow.said().lines().any(|line| line == format!("{first} {text}")).then_some(())
        })
    };
    let kill = |args: &[&str]| {
        let output = slow.rig.run(args);
        let (out, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.success(), out, error)
    };
    let (done, out, error) = kill(&["kill", "--reload", "s"]);
    assert!(done && out.contains(&format!("pid {first}")), "{out}{error}");
    says("SIGUSR1");
    assert!(kill(&["kill", "-s", "hup", "s"]).0);
    says("SIGHUP");
    let (done, _, error) = kill(&["kill", "-s", "STOP", "s"]);
    assert!(!done && error.contains("are HUP, "), "{error}");
    // The signal reaches the program through the pid of the shim, too.
    std::fs::write(slow.rig.path("data/said"), "").unwrap();
    crate::support::signal(slow.rig.status("s").shim.unwrap(), handoff::sys::process::Signal::SIGHUP);
    says("SIGHUP");
    assert_eq!((slow.pid(), slow.rig.status("s").restarts), (first, 0));
    let status = String::from_utf8(slow.rig.run(&["status", "s"]).stdout).unwrap();
    assert!(status.contains(&format!("pid         {first}")), "{status}");
    let output = slow.rig.run(&["status", "s", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = |value: &serde_json::Value| value.as_u64().and_then(|pid| u32::try_from(pid).ok());
    assert_eq!(pid(&status["pid"]), Some(first), "{status}");
    assert_eq!(pid(&status["shim"]), slow.rig.status("s").shim, "{status}");
    assert_eq!(pid(&status["last_handoff"]["shim"]), slow.rig.status("s").shim, "{status}");
}

/// The main process of a daemonised program has ended long ago. Only the listener identifies the program.
#[test]
fn a_daemon_survives_an_upgrade_that_is_called_off_or_rolled_back() {
    let slow =
        Slow::wrapped("exclusive", "0", "stop_grace = \"10s\"\ndrain_grace = \"300ms\"\n", &["fork"], "");
    let first = slow.pid();
    let request = slow.ask_slowly("slow");
    let outcome = slow.restart();
    assert_eq!((outcome.outcome, outcome.restarted), (Ending::RolledBack, false), "{outcome:?}");
    assert_eq!(slow.answered(request), first.to_string(), "its request is answered");
    slow.found(first);

    let file = slow.rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("\"300ms\"", "\"20s\"");
    std::fs::write(&file, text).unwrap();
    let request = slow.ask_slowly("slow");
    let outcome = std::thread::scope(|scope| {
        let restart = scope.spawn(|| slow.restart());
        super::wait_for("the drain", || {
            (slow.rig.status("s").phase.as_deref() == Some("draining")).then_some(())
        });
        slow.outcome(Request::Cancel(service("s")));
        restart.join().unwrap()
    });
    assert_eq!((outcome.outcome, outcome.restarted), (Ending::RolledBack, false), "{outcome:?}");
    assert_eq!(slow.answered(request), first.to_string());
    assert_eq!((slow.pid(), slow.rig.status("s").restarts, slow.said().as_str()), (first, 0, ""));
}

/// The old program is not started again if a new one is ready to replace it.
#[test]
fn a_program_with_its_stop_signal_is_followed_by_the_new_one_whatever_comes() {
    // The deadline passes while it saves.
    let grants = "stop_grace = \"20s\"\ndrain_grace = \"6s\"\ndeadline = \"6s\"\n";
    let slow = Slow::serve("exclusive", "8", grants);
    let first = slow.pid();
    let outcome = slow.restart();
    assert_eq!((outcome.outcome, outcome.killed), (Ending::Committed, vec![]));
    assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"));
    let second = slow.pid();
    assert_ne!(second, first);

    // The upgrade is cancelled.
    let slow = Slow::serve("exclusive", "6", "stop_grace = \"20s\"\ndrain_grace = \"10s\"\n");
    let first = slow.pid();
    let outcome = std::thread::scope(|scope| {
        let restart = scope.spawn(|| slow.restart());
        super::wait_for("it to be asked to end", || slow.said().contains("asked").then_some(()));
        let refused = slow.rig.call(Request::Cancel(service("s"))).unwrap_err().to_string();
        assert!(refused.contains("phase sealing") && refused.contains("goes forward"), "{refused}");
        restart.join().unwrap()
    });
    assert_eq!((outcome.outcome, outcome.restarted), (Ending::Committed, false), "{outcome:?}");
    assert_ne!(slow.pid(), first);
    assert_eq!(slow.rig.status("s").restarts, 0);
}

/// The shim records the slot for new connections before it switches them there.
#[test]
fn a_program_ends_in_order_although_nothing_can_be_written_down() {
    const GRANTS: &str = "stop_grace = \"20s\"\n";
    let stops = |drain: &str| {
        let slow = Slow::serve("exclusive", "2", &format!("{GRANTS}{drain}"));
        let first = slow.pid();
        std::fs::create_dir(slow.rig.path("state/services/s/pair.new")).unwrap();
        let outcome = slow.outcome(Request::Stop(service("s")));
        assert_eq!((outcome.outcome, outcome.killed), (Ending::Stopped, vec![]), "{drain}");
        assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"), "{drain}");
    };
    let daemon_ends = || {
        let mut slow = Slow::serve("exclusive", "2", GRANTS);
        let first = slow.pid();
        std::fs::create_dir(slow.rig.path("state/services/s/pair.new")).unwrap();
        assert!(slow.rig.stop_daemon().unwrap().success());
        assert_eq!(slow.said(), format!("{first} asked\n{first} saved\n"));
    };
    std::thread::scope(|scope| {
        for drain in ["", "drain = \"nothing\"\n"] {
            scope.spawn(move || stops(drain));
        }
        scope.spawn(daemon_ends);
    });
}
