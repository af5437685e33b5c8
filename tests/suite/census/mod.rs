//! Which processes have connections to an address, and which connections are at work: with real sockets, and the server
//! in another process.

mod waiting;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff::config::{ListenAddress, UNIX_PATH_MAX_BYTES};
use handoff::slots::Group;
use handoff::slots::census::Census;
use handoff::sys::descriptor::set_nonblocking;
use handoff::sys::files::{files_limit, raise_files_limit};
use handoff::sys::poll::{PollFlags, poll_one};
use handoff::sys::process::tree_of;
use handoff::sys::socket::{SockFlag, accept};

use crate::support::{LIMIT, again, wait_for};
use nix::time::{ClockId, clock_gettime};

/// The coarsest clock of the kernel for data on a connection, plus the same for rounding.
const TICK_MS: u64 = 20;

/// A server that executes one command at a time. It ends when this is dropped.
struct Puppet {
    process: Child,
    control: BufReader<UnixStream>,
}

impl Puppet {
    /// Runs this test program again, see [`puppet`]. The control socket is its stdin, and the listener its stderr. The
    /// process runs when this returns, because a connection counts as young for only a second.
    fn new(listener: impl Into<OwnedFd>) -> Puppet {
        let (ours, its) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        let process = again(puppet, "HANDOFF_TEST_PUPPET", "1")
            .stdin(OwnedFd::from(its))
            .stdout(Stdio::null())
            .stderr(listener.into())
            .spawn();
        let mut puppet = Puppet { process: process.unwrap(), control: BufReader::new(ours) };
        puppet.does("nothing");
        puppet
    }

    /// Executes a command, and returns when it is done.
    fn does(&mut self, command: &str) {
        self.begins(command);
        self.ends();
    }

    /// Begins a command, and returns at once.
    fn begins(&mut self, command: &str) {
        writeln!(self.control.get_mut(), "{command}").unwrap();
    }

    /// Returns when the last command is done.
    fn ends(&mut self) {
        let mut reply = String::new();
        self.control.read_line(&mut reply).unwrap();
        assert_eq!(reply, "done\n");
    }

    fn tree(&self) -> impl Fn() -> Vec<u32> + use<> {
        let pid = self.process.id();
        move || tree_of(pid)
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test: [`Puppet`] starts it as a server. Connections are numbered in the order of their acceptance.
#[test]
fn puppet() {
    if std::env::var_os("HANDOFF_TEST_PUPPET").is_none() {
        return;
    }
    let control: UnixStream = std::io::stdin().as_fd().try_clone_to_owned().unwrap().into();
    let listener = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    let mut connections: Vec<Option<File>> = Vec::new();
    let mut lent = Vec::new();
    for line in BufReader::new(control.try_clone().unwrap()).lines() {
        let line = line.unwrap();
        let (verb, numbers) = line.split_once(' ').unwrap_or((&line, ""));
        let numbers: Vec<usize> = numbers.split(' ').filter_map(|number| number.parse().ok()).collect();
        match verb {
            "nothing" => {}
            "accept" => connections.push(Some(accept(&listener, SockFlag::empty()).unwrap().into())),
            "read" => file(&connections, numbers[0]).read_exact(&mut vec![0; numbers[1]]).unwrap(),
            "polls" => set_nonblocking(file(&connections, numbers[0]), true).unwrap(),
            "some" => {
                let connection = file(&connections, numbers[0]);
                poll_one(connection, PollFlags::POLLIN, None).unwrap();
                assert!({ connection }.read(&mut [0; 4096]).unwrap() > 0);
            }
            "write" => file(&connections, numbers[0]).write_all(&vec![0; numbers[1]]).unwrap(),
            "flood" => {
                let connection = file(&connections, numbers[0]);
                set_nonblocking(connection, true).unwrap();
                while { connection }.write(&[0; 65536]).is_ok() {}
            }
            "close" => connections[numbers[0]] = None,
            "lend" => {
                let connection = connections[numbers[0]].take().unwrap();
                lent.push(Command::new("/bin/cat").stdin(Stdio::piped()).stdout(connection).spawn().unwrap());
            }
            "reclaim" => {
                let mut child = lent.pop().unwrap();
                drop(child.stdin.take());
                child.wait().unwrap();
            }
            _ => panic!("{line}"),
        }
        writeln!(&control, "done").unwrap();
    }
}

fn file(connections: &[Option<File>], number: usize) -> &File {
    connections[number].as_ref().unwrap()
}

/// A listener on the loopback, its server, and a census of its address.
fn serve() -> (Puppet, SocketAddr, Census) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (Puppet::new(listener), address, Census::new(&[ListenAddress::Tcp(address)]).unwrap())
}

fn is_accepted(client: &TcpStream) -> bool {
    Census::is_accepted(client.local_addr().unwrap(), client.peer_addr().unwrap()).unwrap()
}

#[test]
fn a_connection_counts_from_its_acceptance_to_its_end() {
    let (mut puppet, address, mut census) = serve();
    assert!(census.is_empty(puppet.tree()).unwrap());
    let client = TcpStream::connect(address).unwrap();
    assert!(census.is_empty(puppet.tree()).unwrap(), "it waits in the queue");
    assert!(!is_accepted(&client));
    puppet.does("accept");
    assert!(!census.is_empty(puppet.tree()).unwrap());
    assert!(is_accepted(&client));
    let tree = || panic!("the connection is known, so no process is searched for it");
    assert!(!census.is_empty(tree).unwrap());
    puppet.does("close 0");
    assert!(census.is_empty(puppet.tree()).unwrap());
    assert!(!is_accepted(&client), "no process has it any more");
}

#[test]
fn an_address_at_which_there_was_no_connection_has_none_accepted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(!Census::is_accepted(nobody, listener.local_addr().unwrap()).unwrap());
}

#[test]
fn the_connections_of_others_do_not_count() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut old = Puppet::new(listener.try_clone().unwrap());
    let mut new = Puppet::new(listener);
    let mut census = Census::new(&[ListenAddress::Tcp(address)]).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    new.does("accept");
    client.write_all(b"request").unwrap();
    assert!(census.is_empty(old.tree()).unwrap());
    assert_eq!(census.survey(old.tree()).unwrap().oldest_ms, None);
    let _other = TcpStream::connect(address).unwrap();
    old.does("accept");
    assert!(!census.is_empty(old.tree()).unwrap());
    old.does("close 0");
    assert!(census.is_empty(old.tree()).unwrap());
    assert!(census.survey(new.tree()).unwrap().oldest_ms.is_some());
    let elsewhere = [SocketAddr::new("127.0.0.2".parse().unwrap(), address.port()), {
        let mut other = address;
        other.set_port(address.port() ^ 1);
        other
    }];
    for other in elsewhere {
        let mut census = Census::new(&[ListenAddress::Tcp(other)]).unwrap();
        assert!(census.is_empty(new.tree()).unwrap(), "{other}");
    }
}

#[test]
fn what_a_descendant_has_counts() {
    let (mut puppet, address, mut census) = serve();
    let _client = TcpStream::connect(address).unwrap();
    puppet.does("accept");
    let parent = puppet.process.id();
    let mut of_the_parent = Census::new(&[ListenAddress::Tcp(address)]).unwrap();
    assert!(!census.is_empty(puppet.tree()).unwrap());
    assert!(!of_the_parent.is_empty(|| vec![parent]).unwrap());
    puppet.does("lend 0");
    assert!(!census.is_empty(puppet.tree()).unwrap(), "the child has it");
    assert!(of_the_parent.is_empty(|| vec![parent]).unwrap(), "it was given away");
    puppet.does("reclaim");
    assert!(census.is_empty(puppet.tree()).unwrap());
}

#[test]
fn a_client_that_has_ended_its_side_still_waits() {
    let (mut puppet, address, mut census) = serve();
    let mut client = TcpStream::connect(address).unwrap();
    let idle = TcpStream::connect(address).unwrap();
    puppet.does("accept");
    puppet.does("accept");
    idle.shutdown(Shutdown::Write).unwrap();
    // The other connection is young, so a request is expected.
    assert_eq!(census.survey(puppet.tree()).unwrap().oldest_ms, Some(0));
    wait_for("an end without data not to count as a request", || {
        census.survey(puppet.tree()).unwrap().oldest_ms.is_none().then_some(())
    });
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    puppet.does("read 0 7");
    assert!(!census.is_empty(puppet.tree()).unwrap());
    assert!(census.survey(puppet.tree()).unwrap().oldest_ms.is_some());
    puppet.does("write 0 6");
    client.read_exact(&mut [0; 6]).unwrap();
    comes_to_rest(&mut census, &puppet);
    puppet.does("close 0");
    assert!(!census.is_empty(puppet.tree()).unwrap(), "the other connection");
    puppet.does("close 1");
    assert!(census.is_empty(puppet.tree()).unwrap());
}

#[test]
fn a_request_is_busy_until_it_is_answered_and_gets_older() {
    let (mut puppet, address, mut census) = serve();
    let mut client = TcpStream::connect(address).unwrap();
    puppet.does("accept");
    assert_eq!(
        census.survey(puppet.tree()).unwrap().oldest_ms,
        Some(0),
        "it is young, so a request is expected"
    );
    comes_to_rest(&mut census, &puppet);
    for round in 0..2 {
        let asked = Instant::now();
        client.write_all(b"request").unwrap();
        wait_for(&format!("the unread request, round {round}"), || {
            census.survey(puppet.tree()).unwrap().oldest_ms
        });
        puppet.does("read 0 7");
        gets_older(&mut census, &puppet, asked);
        puppet.does("write 0 6");
        client.read_exact(&mut [0; 6]).unwrap();
        comes_to_rest(&mut census, &puppet);
        let answered = Instant::now();
        wait_for("some idle time", || (answered.elapsed().as_millis() > 200).then_some(()));
        assert_eq!(census.survey(puppet.tree()).unwrap().oldest_ms, None, "idle");
    }
}

/// The age grows, and never exceeds the time since `asked`: earlier idle time does not count.
fn gets_older(census: &mut Census, puppet: &Puppet, asked: Instant) {
    wait_for("a request of 100 ms", || {
        let age = census.survey(puppet.tree()).unwrap().oldest_ms.expect("it is not answered");
        assert!(u128::from(age) <= asked.elapsed().as_millis() + u128::from(TICK_MS), "{age} ms is too old");
        (age >= 100).then_some(())
    });
}

fn comes_to_rest(census: &mut Census, puppet: &Puppet) {
    wait_for("rest", || census.survey(puppet.tree()).unwrap().oldest_ms.is_none().then_some(()));
}

#[test]
fn an_answer_that_the_client_does_not_take_is_work() {
    let (mut puppet, address, mut census) = serve();
    let mut client = TcpStream::connect(address).unwrap();
    puppet.does("accept");
    let asked = Instant::now();
    client.write_all(b"request").unwrap();
    puppet.does("read 0 7");
    puppet.does("flood 0");
    gets_older(&mut census, &puppet, asked);
    client.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let mut buffer = vec![0; 1 << 20];
    wait_for("rest", || {
        while client.read(&mut buffer).is_ok() {}
        census.survey(puppet.tree()).unwrap().oldest_ms.is_none().then_some(())
    });
}

#[test]
fn the_oldest_request_is_the_reported_one() {
    let (mut puppet, address, mut census) = serve();
    let mut first = TcpStream::connect(address).unwrap();
    let mut second = TcpStream::connect(address).unwrap();
    puppet.does("accept");
    puppet.does("accept");
    let asked = Instant::now();
    first.write_all(b"request").unwrap();
    puppet.does("read 0 7");
    gets_older(&mut census, &puppet, asked);
    let asked_again = Instant::now();
    second.write_all(b"request").unwrap();
    puppet.does("read 1 7");
    assert!(census.survey(puppet.tree()).unwrap().oldest_ms.unwrap() >= 100);
    puppet.does("write 0 6");
    first.read_exact(&mut [0; 6]).unwrap();
    wait_for("the second to be the oldest", || {
        let age =
            u128::from(census.survey(puppet.tree()).unwrap().oldest_ms.expect("the second is not answered"));
        (age <= asked_again.elapsed().as_millis() + u128::from(TICK_MS)).then_some(())
    });
}

#[test]
fn each_family_is_found_at_its_listener() {
    let cases = [
        // A socket does not show whether its listener has the address or the wildcard.
        ("127.0.0.1:0", "127.0.0.1", vec!["127.0.0.1:P", "0.0.0.0:P"]),
        ("0.0.0.0:0", "127.0.0.1", vec!["127.0.0.1:P", "0.0.0.0:P"]),
        ("[::1]:0", "[::1]", vec!["[::1]:P", "[::]:P", "*:P"]),
        // The standard library opens the listener for both families; the server-side socket of a v4 client is a v6
        // socket.
        ("[::]:0", "[::1]", vec!["[::1]:P", "[::]:P", "*:P"]),
        ("[::]:0", "127.0.0.1", vec!["*:P"]),
    ];
    for (bound, host, right) in cases {
        let listener = TcpListener::bind(bound).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut puppet = Puppet::new(listener);
        let mut client = TcpStream::connect(format!("{host}:{port}")).unwrap();
        assert!(!is_accepted(&client), "{bound} {host}");
        puppet.does("accept");
        assert!(is_accepted(&client), "{bound} {host}");
        client.write_all(b"request").unwrap();
        for address in ["127.0.0.1:P", "0.0.0.0:P", "[::1]:P", "[::]:P", "*:P"] {
            let parsed = address.replace('P', &port.to_string()).parse().unwrap();
            let mut census = Census::new(&[parsed]).unwrap();
            let expected = right.contains(&address);
            assert_eq!(!census.is_empty(puppet.tree()).unwrap(), expected, "{bound} {host} {address}");
            assert_eq!(census.survey(puppet.tree()).unwrap().oldest_ms.is_some(), expected, "{bound} {host}");
        }
        puppet.does("close 0");
        let mut census = Census::new(&[format!("*:{port}").parse().unwrap()]).unwrap();
        assert!(census.is_empty(puppet.tree()).unwrap());
    }
}

#[test]
fn unix_connections_are_found_by_path() {
    let dir = tempfile::tempdir().unwrap();
    let longest = "l".repeat(UNIX_PATH_MAX_BYTES - dir.path().as_os_str().len() - 1);
    for name in ["s.sock", &longest] {
        let path = dir.path().join(name);
        let group = Group::open(&ListenAddress::Unix(path.clone())).unwrap();
        let listener = group.fd(group.steered()).unwrap().try_clone_to_owned().unwrap();
        unix_connection_is_found(listener, path);
    }
    let path = dir.path().join("own.sock");
    unix_connection_is_found(UnixListener::bind(&path).unwrap(), path);
}

fn unix_connection_is_found(listener: impl Into<OwnedFd>, path: PathBuf) {
    let mut puppet = Puppet::new(listener);
    let mut census = Census::new(&[ListenAddress::Unix(path.clone())]).unwrap();
    let mut other = Census::new(&[ListenAddress::Unix(path.with_file_name("other"))]).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    assert!(census.is_empty(puppet.tree()).unwrap(), "it waits in the queue");
    puppet.does("accept");
    for _ in 0..2 {
        assert!(!census.is_empty(puppet.tree()).unwrap(), "{}", path.display());
    }
    assert!(other.is_empty(puppet.tree()).unwrap());
    assert_eq!(census.survey(puppet.tree()).unwrap().oldest_ms, None);
    client.write_all(b"request").unwrap();
    gets_older(&mut census, &puppet, Instant::now());
    puppet.does("read 0 7");
    assert_eq!(census.survey(puppet.tree()).unwrap().oldest_ms, None, "what was read is not seen");
    puppet.does("close 0");
    assert!(census.is_empty(puppet.tree()).unwrap());
}

#[test]
fn thousands_of_connections_are_distinguished_at_little_cost() {
    const INNER: &str = "HANDOFF_TEST_MANY_FILES";
    if std::env::var_os(INNER).is_none() {
        // In a separate process: the limit of open files would apply to all other tests of this process, too.
        let test = thousands_of_connections_are_distinguished_at_little_cost;
        assert!(again(test, INNER, "1").status().unwrap().success());
        return;
    }
    let count = 5000.min(more_files().saturating_sub(200));
    let (mut puppet, address, mut census) = serve();
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(TcpStream::connect(address).unwrap());
        puppet.does("accept");
    }
    let tree = puppet.tree();
    let first = cpu_time(|| assert!(!census.is_empty(&tree).unwrap()));
    let next = cpu_time(|| assert!(!census.is_empty(&tree).unwrap()));
    comes_to_rest(&mut census, &puppet);
    let at_rest = cpu_time(|| assert_eq!(census.survey(&tree).unwrap().oldest_ms, None));
    clients[7].write_all(b"request").unwrap();
    wait_for("the request", || census.survey(&tree).unwrap().oldest_ms);
    let busy = cpu_time(|| assert!(census.survey(&tree).unwrap().oldest_ms.is_some()));
    let [at_work, still_at_work] =
        [(); 2].map(|()| cpu_time(|| assert!(census.survey(&tree).unwrap().work > 0)));
    let at_work_ms = |census: &mut Census| census.survey(&tree).unwrap().oldest_ms;
    wait_for("the age", || at_work_ms(&mut census).filter(|ms| *ms >= 1));
    let still_long = cpu_time(|| assert!(at_work_ms(&mut census) >= Some(1)));
    for number in 1..count {
        puppet.does(&format!("close {number}"));
    }
    let most_gone = cpu_time(|| assert!(!census.is_empty(&tree).unwrap()));
    puppet.does("close 0");
    let all_gone = cpu_time(|| assert!(census.is_empty(&tree).unwrap()));
    println!(
        "{count} connections, CPU time: first look {first:?}, next {next:?}; requests: none {at_rest:?}, one {busy:?}"
    );
    println!("at work {at_work:?}, still {still_at_work:?}, still long {still_long:?}");
    println!("all but one gone {most_gone:?}, all gone {all_gone:?}");
}

/// Raises the limit of open files to the maximum for this process. Returns it.
fn more_files() -> u64 {
    let _ = raise_files_limit();
    files_limit()
}

fn cpu_time(run: impl FnOnce()) -> Duration {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let before = now();
    run();
    now() - before
}
