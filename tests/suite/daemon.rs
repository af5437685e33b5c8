//! The daemon and the command line from a user's view: mistakes, logs, and leftovers.

use std::net::TcpListener;
use std::process::Output;

use crate::support::{Rig, SmallDisk, close, processes_of, service, version, wait_for};
use handoff::control::Client;
use handoff::control::api::{Request, State};
use handoff::sys::process::is_zombie;
use handoff::sys::user::effective_user;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_second_daemon_on_the_same_state_directory_is_refused_with_the_pid_of_the_first() {
    let rig = Rig::new();
    let first = rig.daemon.as_ref().unwrap().id();
    let second = rig.handoff(&["daemon", "--runtime-dir"]).arg(rig.path("other-run")).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second).contains(&format!("pid {first}")), "{}", text(&second));
    assert!(text(&second).contains("state"), "{}", text(&second));
}

#[test]
fn a_port_in_use_by_a_stranger_is_named_with_its_pid() {
    let rig = Rig::new();
    let binary = rig.release("1", "");
    let address = rig.write_service("s", &binary, "");
    let stranger = TcpListener::bind(address).unwrap();
    let output = rig.run(&["start", "s"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let pid = std::process::id();
    assert!(text(&output).contains(&address.to_string()), "{}", text(&output));
    assert!(text(&output).contains(&format!("pid {pid}")), "{}", text(&output));
    close(stranger);
    assert_eq!(rig.run(&["start", "s"]).status.code(), Some(0));
    assert_eq!(version(address), "1");
}

#[test]
fn a_broken_service_file_does_not_hide_the_others_and_breaks_nothing_that_runs() {
    let mut rig = Rig::new();
    let address = rig.serve("good", "1", "", "");
    std::fs::write(rig.path("config/services/bad.toml"), "binary = 7\nbinnary = \"/x\"\n").unwrap();
    let check = rig.run(&["check"]);
    assert_eq!(check.status.code(), Some(3));
    assert!(text(&check).contains("bad.toml:1:") && text(&check).contains("binnary"), "{}", text(&check));
    let start = rig.run(&["start", "bad"]);
    assert_eq!(start.status.code(), Some(3), "{}", text(&start));
    assert_eq!(version(address), "1");
    // A running service serves on when its file becomes invalid. Its upgrade is refused.
    let file = rig.path("config/services/good.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("mode = \"neither\"\n{good}")).unwrap();
    let upgrade = rig.run(&["upgrade", "good"]);
    assert_eq!(upgrade.status.code(), Some(3), "{}", text(&upgrade));
    assert_eq!(version(address), "1");
    // The next daemon runs every service with a valid file.
    std::fs::write(&file, good.replace("autostart = false\n", "")).unwrap();
    rig.stop_daemon();
    rig.start_daemon();
    wait_for("the good service", || (rig.status("good").state == State::Serving).then_some(()));
    assert_eq!(version(address), "1");
}

#[test]
fn an_unknown_service_is_answered_with_the_nearest_name() {
    let rig = Rig::new();
    rig.serve("storage", "1", "", "");
    let output = rig.run(&["upgrade", "storgae"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("\"storage\""), "{}", text(&output));
}

#[test]
fn addresses_change_only_with_a_stop() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let other = rig.write_service("s", &rig.release("2", ""), "");
    assert_ne!(address, other);
    let output = rig.run(&["upgrade", "s"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("[listen]"), "{}", text(&output));
    assert_eq!(version(address), "1");
    assert_eq!(rig.run(&["stop", "s"]).status.code(), Some(0));
    assert_eq!(rig.run(&["start", "s"]).status.code(), Some(0));
    assert_eq!(version(other), "1", "what was committed runs until an upgrade says otherwise");
}

#[test]
fn the_command_line_says_in_one_sentence_what_happened() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let good = rig.release("2", "");
    let output = rig.run(&["upgrade", "s", "--binary", good.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("generation 2"), "{}", text(&output));
    let bad = rig.release("3", "exit-at-once");
    let output = rig.run(&["upgrade", "s", "--binary", bad.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains("exited with code 1"), "{}", text(&output));
    assert_eq!(version(address), "2");
    let json = rig.run(&["status", "s", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(text(&json).contains("rolled_back"), "{status}");
}

#[test]
fn every_line_of_the_log_is_kept_over_an_upgrade() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    wait_for("the lines of both", || {
        let output = rig.run(&["logs", "s"]);
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        ["testee 1 starts", "testee 1 ends", "testee 2 starts"]
            .iter()
            .all(|line| log.contains(line))
            .then_some(())
    });
}

#[test]
fn without_a_daemon_each_verb_says_so() {
    let mut rig = Rig::new();
    rig.stop_daemon();
    std::fs::remove_file(rig.path("state/status.json")).unwrap();
    for verb in [&["list"][..], &["status"], &["start", "s"], &["upgrade", "s"]] {
        let output = rig.run(verb);
        assert_eq!(output.status.code(), Some(2), "{verb:?}: {}", text(&output));
        assert!(text(&output).contains("control.sock"), "{}", text(&output));
    }
}

#[test]
fn a_client_that_sends_garbage_or_nothing_disturbs_no_other_client() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let silent: Vec<_> =
        (0..50).map(|_| UnixStream::connect(rig.path("run/control.sock")).unwrap()).collect();
    let mut garbage = UnixStream::connect(rig.path("run/control.sock")).unwrap();
    garbage.write_all(&[0xff; 1000]).unwrap();
    garbage.write_all(b"\n").unwrap();
    let mut answer = [0; 512];
    let read = garbage.read(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer[..read]).contains("-32700"));
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(version(address), "2");
    drop(silent);
}

#[test]
fn a_client_that_hangs_up_does_not_end_its_upgrade() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let binary = rig.release("2", "slow-begin-5000");
    let mut client = UnixStream::connect(rig.path("run/control.sock")).unwrap();
    let request = serde_json::json!({
        "jsonrpc": "2.0", "id": 1, "method": "upgrade", "params": {"service": "s", "binary": binary},
    });
    client.write_all(format!("{request}\n").as_bytes()).unwrap();
    wait_for("the upgrade to begin", || (rig.status("s").state == State::Upgrading).then_some(()));
    drop(client);
    wait_for("the upgrade to end", || (rig.status("s").generation.0 == 2).then_some(()));
    assert_eq!(version(address), "2");
}

#[test]
fn a_service_file_that_is_new_is_known_at_once() {
    let rig = Rig::new();
    rig.write_service("later", &rig.release("1", ""), "");
    assert_eq!(rig.status("later").state, State::Stopped);
    let list = rig.run(&["list"]);
    assert!(text(&list).contains("later"), "{}", text(&list));
    // A new file with an address of a known service does not become a service, although its name sorts first.
    let file = |name: &str| rig.path(&format!("config/services/{name}.toml"));
    std::fs::copy(file("later"), file("earlier")).unwrap();
    assert!(rig.status("earlier").problem.unwrap().contains("an address of \"later\" too"));
    let start = text(&rig.run(&["start", "earlier"]));
    assert!(start.contains("an address of \"later\" too"), "{start}");
}

#[test]
fn a_start_that_hangs_can_be_stopped() {
    let rig = Rig::new();
    let binary = rig.release("1", "hang-while-warming");
    rig.write_service("s", &binary, "");
    std::thread::scope(|scope| {
        let start = scope.spawn(|| rig.call(Request::Start(service("s"))));
        wait_for("the start to warm", || (rig.status("s").phase.as_deref() == Some("warming")).then_some(()));
        rig.call(Request::Stop(service("s"))).unwrap();
        start.join().unwrap().unwrap();
    });
    assert_eq!(rig.status("s").state, State::Stopped);
    wait_for("its process to end", || crate::support::processes_of(&binary).is_empty().then_some(()));
}

#[test]
fn a_restart_that_hangs_does_not_keep_the_daemon_from_ending() {
    let mut rig = Rig::new();
    rig.serve("s", "1", "", "");
    let old = rig.status("s").pid.unwrap();
    let hangs = rig.release("2", "hang-while-warming");
    std::fs::rename(hangs, rig.path("testee-1")).unwrap();
    crate::support::signal(old, handoff::sys::process::Signal::SIGKILL);
    let pid = wait_for("the restart", || {
        processes_of(rig.root.path()).into_iter().find(|pid| {
            let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            *pid != old && program == rig.path("testee-1")
        })
    });
    assert!(rig.stop_daemon().expect("it ends by itself").success());
    assert!(!processes_of(rig.root.path()).contains(&pid));
}

#[test]
fn many_listeners_reach_the_service_and_a_missing_binary_still_fails_as_such() {
    let rig = Rig::new();
    let main = rig.write_service("s", &rig.release("1", ""), "");
    let file = rig.path("config/services/s.toml");
    let mut toml = std::fs::read_to_string(&file).unwrap();
    for n in 0..9 {
        toml.push_str(&format!("extra-{n} = \"{}\"\n", crate::support::free_address()));
    }
    std::fs::write(&file, toml).unwrap();
    assert_eq!(rig.run(&["start", "s"]).status.code(), Some(0));
    assert_eq!(version(main), "1");
    let output = rig.run(&["upgrade", "s", "--binary", "/nonexistent/server"]);
    assert_eq!(output.status.code(), Some(6), "{}", text(&output));
    assert!(text(&output).contains("/nonexistent/server"), "{}", text(&output));
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(version(main), "2");
}

/// Needs root for a separate small file system.
#[test]
fn a_full_disk_costs_an_upgrade_and_nothing_else() {
    let mut rig = Rig::new();
    if effective_user() != 0 {
        eprintln!("not run: it needs root to mount a small file system");
        return;
    }
    rig.stop_daemon();
    let disk = SmallDisk::mount(&rig.path("state"));
    rig.start_daemon();
    let address = rig.serve("s", "1", "", "");
    let next = rig.release("2", "");
    std::fs::write(disk.0.join("fill"), vec![0; 1 << 20]).unwrap_err();
    let mut versions = [rig.path("testee-1"), next].into_iter().cycle();
    // Enough upgrades to fill a page of the journal. The loop has no time limit, because a busy machine may be slow.
    let refused = (0..200).find_map(|_| {
        let outcome = rig.upgrade("s", &versions.next().unwrap()).unwrap();
        (outcome.outcome == handoff::control::api::Ending::RolledBack).then_some(outcome)
    });
    let refused = refused.expect("the journal needs another page");
    let reason = refused.reason.unwrap();
    assert!(reason.contains("journal") && reason.contains("No space left"), "{reason}");
    let serving = version(address);
    // The service is restarted after a crash, even while the disk is full.
    let pid = rig.status("s").pid.unwrap();
    crate::support::signal(pid, handoff::sys::process::Signal::SIGKILL);
    assert_eq!(version(address), serving);
    std::fs::remove_file(disk.0.join("fill")).unwrap();
    let good = rig.upgrade("s", &rig.release("3", "")).unwrap();
    assert_eq!(good.outcome, handoff::control::api::Ending::Committed, "{good:?}");
    assert_eq!(version(address), "3");
    rig.stop_daemon();
}

#[test]
fn a_runtime_directory_that_is_removed_comes_back_and_everything_can_be_managed() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "lease = \"3s\"");
    let pid = rig.settled("s").pid;
    let remove = |rig: &Rig| {
        // The daemon may create files during the removal. Then the removal is retried.
        wait_for("it to be removed", || std::fs::remove_dir_all(rig.path("run")).ok());
    };
    remove(&rig);
    wait_for("the daemon to answer", || Client::connect(&rig.path("run/control.sock")).ok());
    assert_eq!(rig.status("s").pid, pid);
    let keeper =
        wait_for("the keeper", || handoff::keeper::Client::connect(&rig.path("run/keeper.sock")).ok()).pid();
    // A new daemon takes over the service through the recreated files.
    crate::support::kill(rig.daemon.as_ref().unwrap().id());
    rig.daemon.take().unwrap().wait().unwrap();
    wait_for("the process", || {
        std::fs::read_dir(rig.path("run/adopt")).is_ok_and(|it| it.count() > 0).then_some(())
    });
    rig.start_daemon();
    assert_eq!(rig.settled("s").pid, pid);
    assert_eq!(handoff::keeper::Client::connect(&rig.path("run/keeper.sock")).unwrap().pid(), keeper);
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(version(address), "2");
    // The same happens if the directory is removed while no daemon runs.
    let pid = rig.settled("s").pid;
    crate::support::kill(rig.daemon.as_ref().unwrap().id());
    rig.daemon.take().unwrap().wait().unwrap();
    remove(&rig);
    wait_for("the process", || {
        std::fs::read_dir(rig.path("run/adopt")).is_ok_and(|it| it.count() > 0).then_some(())
    });
    rig.start_daemon();
    assert_eq!(rig.settled("s").pid, pid);
    rig.upgrade("s", &rig.release("3", "")).unwrap();
    assert_eq!(version(address), "3");
    rig.call(Request::Stop(service("s"))).unwrap();
    drop(TcpListener::bind(address).expect("no process keeps the port"));
}

/// Needs root, to give a directory away.
#[test]
fn a_runtime_directory_of_another_user_is_not_asked() {
    let rig = Rig::new();
    if effective_user() != 0 {
        eprintln!("not run: it needs root to give a directory to another user");
        return;
    }
    let theirs = rig.path("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let _impostor = std::os::unix::net::UnixListener::bind(theirs.join("control.sock")).unwrap();
    std::os::unix::fs::chown(&theirs, Some(12_345), None).unwrap();
    for verb in [&["list"][..], &["status"], &["stop", "s"], &["daemon"]] {
        let output = rig.handoff(verb).arg("--runtime-dir").arg(&theirs).output().unwrap();
        assert!(!output.status.success(), "{verb:?}");
        assert!(text(&output).contains("belongs to another user (uid 12345)"), "{verb:?}: {}", text(&output));
    }
}

#[test]
fn clients_that_never_read_lock_no_other_client_out() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"list\"}\n".repeat(4_000);
    let deaf: Vec<_> = (0..handoff::control::CONNECTIONS_MAX)
        .map(|_| {
            let mut client = UnixStream::connect(rig.path("run/control.sock")).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.write(&request);
            client
        })
        .collect();
    for _ in 0..10 {
        wait_for("a client that reads to be answered", || {
            rig.call(Request::Status(service("s"))).is_ok().then_some(())
        });
    }
    drop(deaf);
}

/// Needs the right to create namespaces.
#[test]
fn the_first_process_reaps_orphans() {
    use std::process::{Command, Stdio};
    let mut rig = Rig::new();
    let isolated = ["--fork", "--pid", "--mount-proc", "--kill-child"];
    if !Command::new("unshare").args(isolated).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("not run: it needs the right to make namespaces of processes");
        return;
    }
    rig.stop_daemon();
    let daemon = rig.handoff(&["daemon"]);
    let mut command = Command::new("unshare");
    command.args(isolated).arg(daemon.get_program()).args(daemon.get_args()).stdin(Stdio::null());
    command.envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let log = std::fs::File::options().create(true).append(true).open(rig.path("daemon.log")).unwrap();
    let mut outer = command.stderr(log).spawn().unwrap();
    wait_for("the daemon to answer", || Client::connect(&rig.path("run/control.sock")).ok());
    // The preflight command leaves a child that outlives it.
    let mark = rig.path("mark");
    let begun = rig.path("begun").display().to_string();
    let hook = format!(
        "setsid sh -c 'touch {begun}; sleep 2; touch {}' & while [ ! -e {begun} ]; do sleep 0.01; done",
        mark.display()
    );
    let more = format!("preflight = [\"/bin/sh\", \"-c\", {hook:?}]");
    rig.serve("s", "1", "", &more);
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    wait_for("the orphan to end", || mark.exists().then_some(()));
    let first = handoff::sys::process::children_of(outer.id())[0];
    wait_for("it to be reaped", || rig.daemon_log().contains("an orphan has ended").then_some(()));
    wait_for("the ended child to be reaped", || {
        let left = handoff::sys::process::children_of(first).into_iter().find(|pid| is_zombie(*pid));
        left.is_none().then_some(())
    });
    crate::support::signal(first, handoff::sys::process::Signal::SIGTERM);
    assert!(outer.wait().unwrap().success());
}

#[test]
fn a_service_whose_address_is_taken_at_first_starts_when_it_is_free() {
    let mut rig = Rig::new();
    rig.stop_daemon();
    let address = rig.write_service("s", &rig.release("1", ""), "");
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("autostart = false\n", "");
    std::fs::write(&file, text).unwrap();
    let other = TcpListener::bind(address).unwrap();
    rig.start_daemon();
    let status = wait_for("the cause to be reported", || {
        let status = rig.looked_at("s");
        status.problem.is_some().then_some(status)
    });
    assert_eq!(status.state, State::Backoff);
    let problem = status.problem.unwrap();
    let expected = [address.to_string(), format!("pid {}", std::process::id()), "tried again".to_owned()];
    assert!(expected.iter().all(|part| problem.contains(part)), "{problem}");
    drop(other);
    wait_for("it to serve", || (rig.status("s").state == State::Serving).then_some(()));
    assert_eq!(version(address), "1");
    assert_eq!(rig.looked_at("s").problem, None);
}
