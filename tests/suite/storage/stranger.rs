//! Another process of the same user hangs in an exec(2), because a file system does not answer. A process that reads
//! its environment hangs as well.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use handoff::control::api::Request;
use handoff::sys::process::Signal;

use super::hanging;
use crate::support::{all_or, ask, free_address, kill, service, signal, wait_for};

/// After a line on its input it executes another program, which closes the file.
const STRANGER: &str = r#"
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
print("open", flush=True)
sys.stdin.readline()
os.execv("/bin/sleep", ["sleep", "1000"])
"#;

struct Stranger(Child);

impl Stranger {
    fn start(file: &Path) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", STRANGER]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        Self(child)
    }

    /// Returns when the process hangs in the middle of its exec(2), together with any process that inspects it.
    fn exec(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let (stat, (look, looks)) = (format!("/proc/{}/stat", self.0.id()), mpsc::channel());
        std::thread::spawn(move || while look.send(fs::read(&stat)).is_ok() {});
        wait_for("it to wait", || looks.recv_timeout(Duration::from_secs(2)).is_err().then_some(()));
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_whose_memory_does_not_answer_keeps_no_program_from_its_start() {
    // Other tests inspect all processes, and would hang.
    if !all_or(true, false) {
        return;
    }
    let Some((mut rig, disk)) = hanging::rig("mnt") else { return };
    let (address, data) = (free_address(), rig.path("data"));
    let text = format!(
        "binary = {:?}\nargs = [{data:?}, \"{address}\"]\nadapter = \"inject\"\nstore = false\nautostart = false\n\
         [listen]\nmain = \"{address}\"\n",
        rig.release_of("plain", "1", "")
    );
    fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    fs::write(rig.path("mnt/file"), "").unwrap();
    // The stranger is younger than the program, so it could be a part of it.
    let mut stranger = Stranger::start(&rig.path("mnt/file"));
    disk.hang();
    stranger.exec();
    let answers = |before: &str| {
        wait_for("another program", || ask(address, "pid").ok().filter(|answer| answer != before))
    };
    let first = ask(address, "pid").unwrap();
    signal(rig.status("s").shim.unwrap(), Signal::SIGKILL);
    let second = answers(&first);
    rig.settled("s");
    // At its start the next daemon searches for leftovers of a time without a daemon.
    let shim = rig.status("s").shim.unwrap();
    kill(rig.daemon.as_ref().unwrap().id());
    rig.daemon.take().unwrap().wait().unwrap();
    signal(shim, Signal::SIGKILL);
    rig.start_daemon();
    answers(&second);
    drop(disk);
}
