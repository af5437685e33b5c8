//! How the daemon learns the end of a process that is not its child.

use super::*;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A process that is not a child of this one, but of another process.
fn orphan(program: &str) -> (Child, AsyncFd<OwnedFd>) {
    let script = format!("{program} & echo $!; read line");
    let mut command = Command::new("/bin/sh");
    let mut parent =
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pidfd = process::pidfd_open(line.trim().parse().unwrap()).unwrap();
    (parent, readable(pidfd).unwrap())
}

#[tokio::test(flavor = "current_thread")]
async fn the_end_of_a_process_that_is_no_child_is_told() {
    let (mut parent, pidfd) = orphan("sleep 1000");
    let early = timeout(Duration::from_millis(50), gone(&pidfd)).await;
    kill(pidfd.get_ref().as_fd(), Signal::SIGTERM).unwrap();
    let exit = timeout(Duration::from_secs(10), gone(&pidfd)).await;
    drop(parent.stdin.take());
    parent.wait().unwrap();
    assert!(early.is_err());
    assert_eq!(exit.unwrap(), Exit::Signal(15));
}
