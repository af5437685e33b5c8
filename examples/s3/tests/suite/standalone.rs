//! The program alone: its release, its command line, and its behavior without free descriptors.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff_example_s3::stamp::stamp;

const PROGRAM: &str = env!("CARGO_BIN_EXE_s3-server");
const LIMIT: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts the program with a limit of `files` descriptors, and waits until it serves.
    fn start(data_dir: &Path, files: u32) -> Self {
        let options = "--listen 127.0.0.1:0 --access-key access --secret-key secret";
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {files} && exec {PROGRAM:?} {options} {:?}", data_dir))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().parse();
        Self { child, address: address.unwrap_or_else(|_| panic!("it said {line:?}")) }
    }

    /// Its processor time, in ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_version_is_that_of_the_stamp() {
    let dir = tempfile::tempdir().unwrap();
    let release = dir.path().join("release");
    stamp(PROGRAM.as_ref(), &release, "7.8.9", None).unwrap();
    for (program, version) in [(PROGRAM, env!("CARGO_PKG_VERSION")), (release.to_str().unwrap(), "7.8.9")] {
        let output = Command::new(program).arg("--version").output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("s3-server {version}\n"));
    }
}

#[test]
fn a_second_server_does_not_open_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Server::start(dir.path(), 256);
    let second = Command::new(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--access-key", "a", "--secret-key", "s"])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success());
    assert!(said.contains("is in use by another process"), "{said}");
}

#[test]
fn it_neither_spins_nor_gives_up_when_descriptors_run_out() {
    let dir = tempfile::tempdir().unwrap();
    // Its log has no reader now, which must not matter either.
    let server = Server::start(dir.path(), 24);
    let hungry: Vec<_> = (0..40).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let before = server.ticks();
    std::thread::sleep(Duration::from_millis(500));
    let used = server.ticks() - before;
    assert!(used < 20, "{used} ticks of 50: it spins");

    drop(hungry);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let began = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer:?} after {:?}", began.elapsed());
}
