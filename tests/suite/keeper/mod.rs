//! The keeper process: the descriptors it holds, the logs it writes, and its end.

mod daemon;
mod full;
mod giving;

use std::io::{PipeWriter, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use handoff::keeper::{Client, Empty, Error, KeeperReply, KeeperRequest, LogSpec, VERSION};
use handoff::sys::channel::Channel;
use handoff::sys::limits::{Resource, limits, set_limits};
use handoff::sys::process::Signal;
use handoff::sys::socket::{AddressFamily, SockFlag, SockType, connect_path, socket};
use handoff::sys::user::effective_user;
use handoff::sys::wire::recv_message;
use handoff_protocol::frame;
use handoff_protocol::ids::HandoffId;

use crate::support::{LIMIT, arguments_for, copy_program, processes_of, signal, unlabelled, wait_for};

/// A keeper in a temporary directory. It is gone when this is dropped.
struct Fixture {
    root: tempfile::TempDir,
    client: Client,
}

impl Fixture {
    fn new() -> Fixture {
        let root = tempfile::Builder::new().prefix("handoff-keeper-").tempdir().unwrap();
        let client = Client::start(program(), &root.path().join("keeper.sock")).unwrap();
        Fixture { root, client }
    }

    fn socket(&self) -> PathBuf {
        self.root.path().join("keeper.sock")
    }

    fn spec(&self, max_size_bytes: u64, files: u32) -> LogSpec {
        LogSpec {
            service: "s3".into(),
            dir: self.root.path().join("log"),
            max_size_bytes,
            files,
            ..LogSpec::default()
        }
    }

    /// The write end of a new log pipe.
    fn log(&mut self, max_size_bytes: u64, files: u32) -> PipeWriter {
        let spec = self.spec(max_size_bytes, files);
        let (reader, writer) = std::io::pipe().unwrap();
        self.client.log(&spec, reader.as_fd()).unwrap();
        writer
    }

    /// The existing files, oldest first.
    fn files(&self) -> Vec<String> {
        let dir = self.root.path().join("log");
        let rotated = (1..=200).rev().map(|number| dir.join(number.to_string()));
        let all = rotated.chain([dir.join("current")]);
        all.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
    }

    /// What the services wrote.
    fn text(&self) -> String {
        unlabelled(&self.files().concat())
    }

    /// Waits until the log ends with this text.
    fn wait_for_end(&self, end: &str) {
        wait_for(&format!("{end:?} in the log"), || self.text().ends_with(end).then_some(()));
    }

    fn is_alive(&self) -> bool {
        processes_of(self.root.path()).contains(&self.client.pid())
    }

    fn wait_until_it_is_gone(&self) {
        wait_for("the end of the keeper", || self.client.reap());
    }

    fn connect_raw(&self) -> Channel {
        connect_raw(&self.socket())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for pid in processes_of(self.root.path()) {
            signal(pid, Signal::SIGKILL);
        }
        // All are children of this process. No panic here, because a failed test may have a more useful message.
        let until = Instant::now() + LIMIT;
        while !processes_of(self.root.path()).is_empty() && Instant::now() < until {
            self.client.reap();
            std::thread::yield_now();
        }
        self.client.reap();
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_handoff"))
}

fn connect_raw(path: &Path) -> Channel {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty()).unwrap();
    connect_path(&socket, path).unwrap();
    Channel::from_fd(socket).unwrap()
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn open_fds(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The length of `line 000000` in the log, with its label.
const LABELLED_BYTES: usize = "2026-12-01T11:40:12.123Z s3 - - - | line 000000\n".len();

#[test]
fn a_log_is_rotated_and_every_line_stays_whole() {
    let mut keeper = Fixture::new();
    let mut writer = keeper.log(4096, 3);
    for number in 0..2000 {
        writeln!(writer, "line {number:06}").unwrap();
    }
    drop(writer);
    keeper.wait_for_end("line 001999\n");
    let files = keeper.files();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file.len() <= 4096 && file.ends_with('\n')));
    assert!(files[..2].iter().all(|file| file.len() > 4096 - LABELLED_BYTES));
    let text = keeper.text();
    let first = 2000 - text.lines().count();
    assert!(text.lines().zip(first..).all(|(line, number)| line == format!("line {number:06}")));
}

#[test]
fn two_hundred_thousand_lines_of_several_writers_arrive_whole_and_in_order() {
    // On a slow disk, lines may not fit. Then the keeper reports them.
    assert!((0..5).any(|_| many_lines_arrive()), "the disk was slow each time");
}

/// Returns `false` if the disk was slow.
fn many_lines_arrive() -> bool {
    const WRITERS: usize = 4;
    const LINES: usize = 50_000;
    let mut keeper = Fixture::new();
    let (old, new) = (keeper.log(1 << 20, 100), keeper.log(1 << 20, 100));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut pipe = if writer % 2 == 0 { old.try_clone() } else { new.try_clone() }.unwrap();
            scope.spawn(move || {
                let filler = "x".repeat(writer * 17);
                for line in 0..LINES {
                    // A single write, so that the kernel does not split the line.
                    pipe.write_all(format!("{writer} {line} {filler}.\n").as_bytes()).unwrap();
                }
            });
        }
    });
    drop((old, new));
    let stats =
        wait_for("the end of the pipes", || Some(keeper.client.stats().unwrap()).filter(|s| s.pipes == 0));
    let seconds = began.elapsed().as_secs_f64();
    println!("{:.0} lines/s", (WRITERS * LINES) as f64 / seconds);
    if stats.trouble.ends_with("it does not answer") {
        return false;
    }
    assert_eq!((stats.lost_lines, stats.trouble.as_str()), (0, ""));
    let files = keeper.files();
    assert!(files.iter().all(|file| file.len() <= 1 << 20 && file.ends_with('\n')));
    assert!(files.len() > 5);
    let mut next = [0; WRITERS];
    for line in keeper.text().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let writer: usize = fields[0].parse().unwrap();
        assert_eq!(fields[1].parse(), Ok(next[writer]));
        assert_eq!(fields[2].len(), writer * 17 + 1);
        next[writer] += 1;
    }
    assert_eq!(next, [LINES; WRITERS]);
    true
}

#[test]
fn it_outlives_its_supervisor_and_gives_the_next_one_what_it_holds() {
    let mut keeper = Fixture::new();
    let mut writer = keeper.log(1 << 20, 5);
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let keys: Vec<String> = (0..300).map(|number| format!("s3/main/{number:03}")).collect();
    keeper.client.store(keys.iter().map(|key| (key.as_str(), listener.as_fd()))).unwrap();
    keeper.client.drop_key("s3/main/299").unwrap();
    keeper.client.drop_key("never stored").unwrap();
    drop(listener);

    let next = Client::connect(&keeper.socket()).unwrap();
    assert_eq!(next.pid(), keeper.client.pid());
    let first = std::mem::replace(&mut keeper.client, next);
    drop(first);
    writeln!(writer, "no client is there").unwrap();
    keeper.wait_for_end("no client is there\n");

    assert_eq!(keeper.client.list().unwrap(), keys[..299]);
    let fetched = TcpListener::from(keeper.client.fetch("s3/main/123").unwrap());
    let _client = TcpStream::connect(address).unwrap();
    fetched.accept().unwrap();
    let error = keeper.client.fetch("s3/main/299").unwrap_err();
    assert!(matches!(&error, Error::Refused(reason) if reason.contains("s3/main/299")), "{error}");

    let wanted = [&keys[..], &["never stored".to_owned()]].concat();
    let began = Instant::now();
    let all = keeper.client.fetch_all(&wanted).unwrap();
    println!("{} descriptors in {:?}", all.len(), began.elapsed());
    assert!(all.iter().map(|(key, _)| key).eq(&keys[..299]));
    let last = TcpListener::from(all.into_iter().next_back().unwrap().1);
    assert_eq!(last.local_addr().unwrap(), address);
}

#[test]
fn what_it_cannot_write_is_counted_and_reported_and_delays_no_writer() {
    let mut keeper = Fixture::new();
    let mut writer = keeper.log(1 << 20, 2);
    writeln!(writer, "begin").unwrap();
    keeper.wait_for_end("begin\n");
    limit_file_size(keeper.client.pid(), Some(4096));
    for number in 0..50_000 {
        writeln!(writer, "line {number:06}").unwrap();
    }
    let stats = wait_for("lost lines", || {
        let stats = keeper.client.stats().unwrap();
        let line = LABELLED_BYTES as u64;
        (stats.written_bytes + line * stats.lost_lines == line - 6 + line * 50_000).then_some(stats)
    });
    assert!(stats.lost_lines > 49_000, "{stats:?}");
    assert!(stats.trouble.contains("File too large"), "{stats:?}");
    assert!(keeper.text().ends_with('\n'));

    limit_file_size(keeper.client.pid(), None);
    writeln!(writer, "again").unwrap();
    keeper.wait_for_end("again\n");
    let text = keeper.text();
    let note = text.lines().find(|line| line.starts_with("handoff: ")).unwrap();
    assert!(note.contains(&format!(" {} lines are missing", stats.lost_lines)), "{note}");
    assert_eq!(text.lines().count() as u64, 1 + 50_000 - stats.lost_lines + 2);
}

/// Limits the size of files. `None` sets the limit of this process again.
fn limit_file_size(pid: u32, bytes: Option<u64>) {
    let (own, hard) = limits(Resource::RLIMIT_FSIZE).unwrap();
    set_limits(pid, Resource::RLIMIT_FSIZE, bytes.unwrap_or(own), hard).unwrap();
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let mut keeper = Fixture::new();
    keeper.client.ping().unwrap();
    let before = open_fds(keeper.client.pid());
    let fd = listener();
    let ping = frame::encode(VERSION, HandoffId::NIL, &KeeperRequest::Ping(Empty {})).unwrap();
    let mut flipped = ping.clone();
    flipped[20] ^= 1;
    let reply = frame::encode(VERSION, HandoffId::NIL, &KeeperReply::Done(Empty {})).unwrap();
    let too_long = vec![b'x'; frame::FRAME_MAX + 1];
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &ping[..20], &flipped, &too_long] {
        let channel = keeper.connect_raw();
        channel.send(garbage, &[fd.as_fd()]).unwrap();
        assert!(recv_message::<KeeperReply>(&channel, VERSION).unwrap().is_none());
    }
    // An unknown request, perhaps of a later version, is refused without ending the connection.
    let channel = keeper.connect_raw();
    channel.send(&reply, &[fd.as_fd()]).unwrap();
    let (_, answer, _) = recv_message::<KeeperReply>(&channel, VERSION).unwrap().unwrap();
    assert!(matches!(answer, KeeperReply::Failed(failed) if failed.reason.contains("0xa1")));
    channel.send(&ping, &[]).unwrap();
    let (_, answer, _) = recv_message::<KeeperReply>(&channel, VERSION).unwrap().unwrap();
    assert_eq!(answer, KeeperReply::Done(Empty {}));
    drop(channel);
    keeper.client.ping().unwrap();
    wait_for("all descriptors to be closed", || (open_fds(keeper.client.pid()) == before).then_some(()));
}

#[test]
fn many_connections_are_too_many_and_the_supervisor_keeps_its_own() {
    let mut keeper = Fixture::new();
    let connections: Vec<Channel> = (0..40).map(|_| keeper.connect_raw()).collect();
    keeper.client.ping().unwrap();
    drop(connections);
    wait_for("room for another", || Client::connect(&keeper.socket()).ok());
}

#[test]
fn quit_writes_down_what_is_in_the_pipes() {
    let mut keeper = Fixture::new();
    let mut writer = keeper.log(1 << 20, 5);
    keeper.client.settle().unwrap();
    signal(keeper.client.pid(), Signal::SIGSTOP);
    for number in 0..4000 {
        writeln!(writer, "line {number:06}").unwrap();
    }
    write!(writer, "unended").unwrap();
    signal(keeper.client.pid(), Signal::SIGCONT);
    keeper.client.quit().unwrap();
    assert!(keeper.text().ends_with("line 003999\nunended\n"));
    assert_eq!(keeper.text().lines().count(), 4001);
    assert!(!keeper.socket().exists());
    assert!(!keeper.is_alive());
    assert!(matches!(keeper.client.ping(), Err(Error::Broken { .. })));
}

#[test]
fn it_stays_for_a_pipe_or_a_listener_and_ends_when_it_has_neither() {
    let mut keeper = Fixture::new();
    let writer = keeper.log(1 << 20, 5);
    keeper.client.store([("main", listener().as_fd())]).unwrap();
    let pidfd = keeper.client.pidfd().try_clone_to_owned().unwrap();
    // Another client replaces it, and the end of a client ends its connection.
    keeper.client = Client::connect(&keeper.socket()).unwrap();
    keeper.client.drop_key("main").unwrap();
    let pid = keeper.client.pid();
    let next = Fixture::new();
    let old = std::mem::replace(&mut keeper.client, Client::connect(&next.socket()).unwrap());
    drop(old);
    assert!(processes_of(keeper.root.path()).contains(&pid));
    drop(writer);
    wait_for("its end", || handoff::sys::process::reap(pidfd.as_fd()).unwrap());
}

#[test]
fn sigterm_ends_it_after_the_last_pipe_and_other_signals_do_not() {
    let mut keeper = Fixture::new();
    let mut writer = keeper.log(1 << 20, 5);
    keeper.client.store([("main", listener().as_fd())]).unwrap();
    for ignored in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGQUIT, Signal::SIGTERM] {
        signal(keeper.client.pid(), ignored);
    }
    keeper.client.ping().unwrap();
    write!(writer, "last words").unwrap();
    drop(writer);
    keeper.wait_until_it_is_gone();
    assert_eq!(keeper.text(), "last words\n");
}

#[test]
fn a_frozen_keeper_is_an_error_and_not_a_wait() {
    let mut keeper = Fixture::new();
    signal(keeper.client.pid(), Signal::SIGSTOP);
    let began = Instant::now();
    assert!(matches!(keeper.client.ping(), Err(Error::Silent { .. })));
    assert!(matches!(keeper.client.list(), Err(Error::Silent { .. })));
    assert!(matches!(Client::connect(&keeper.socket()), Err(Error::Silent { .. })));
    assert!(began.elapsed() < LIMIT / 2);
}

#[test]
fn a_new_keeper_replaces_the_socket_of_an_old_one() {
    let mut keeper = Fixture::new();
    let mut second = Client::start(program(), &keeper.socket()).unwrap();
    keeper.client.quit().unwrap();
    assert_eq!(Client::connect(&keeper.socket()).unwrap().pid(), second.pid());
    second.quit().unwrap();
}

#[test]
fn what_keeps_it_from_starting_is_reported() {
    let root = tempfile::tempdir().unwrap();
    let nowhere = root.path().join("missing/keeper.sock");
    let error = Client::start(program(), &nowhere).unwrap_err().to_string();
    assert!(error.contains("missing/keeper.sock") && error.contains("No such file"), "{error}");
    let error = Client::start(&root.path().join("no-program"), &nowhere).unwrap_err().to_string();
    assert!(error.contains("no-program"), "{error}");
    let error = Client::connect(&nowhere).unwrap_err().to_string();
    assert!(error.contains("missing/keeper.sock"), "{error}");
    let by_hand = Command::new(program()).arg("keeper").env_remove("HANDOFF_FD").output().unwrap();
    assert_eq!(by_hand.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&by_hand.stderr).contains("an internal command of handoff daemon"));
}

const STRANGERS_SOCKET: &str = "KEEPER_TEST_SOCKET";

/// Only root can act as another user. The mode of the socket would keep the stranger out earlier, so the test opens it.
#[test]
fn a_stranger_is_hung_up_on() {
    if effective_user() != 0 {
        return;
    }
    let keeper = Fixture::new();
    assert_eq!(std::fs::metadata(keeper.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    let program = keeper.root.path().join("stranger");
    copy_program(std::env::current_exe().unwrap(), &program);
    for (path, mode) in [(keeper.root.path(), 0o755), (&keeper.socket(), 0o666), (&program, 0o755)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let mut stranger = Command::new(program);
    std::os::unix::process::CommandExt::uid(&mut stranger, 65534);
    stranger.args(arguments_for(being_a_stranger)).current_dir("/");
    let output = stranger.env(STRANGERS_SOCKET, keeper.socket()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("hung up on"), "{output:?}");
}

/// The other side of the test above. Without its variable it does nothing.
#[test]
fn being_a_stranger() {
    let Some(path) = std::env::var_os(STRANGERS_SOCKET) else { return };
    let channel = connect_raw(Path::new(&path));
    let ping = frame::encode(VERSION, HandoffId::NIL, &KeeperRequest::Ping(Empty {})).unwrap();
    // The keeper may have closed the connection already.
    let _ = channel.send(&ping, &[]);
    assert!(recv_message::<KeeperReply>(&channel, VERSION).unwrap().is_none());
    let error = Client::connect(Path::new(&path)).unwrap_err().to_string();
    assert!(error.contains("another user"), "{error}");
    println!("hung up on");
}
