//! An unmodified server: `bench-plain ADDRESS FILE`. It writes the duration of its first bind in nanoseconds to the
//! file, and answers each line; it answers `calls` with the durations of three system calls.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use handoff::sys::socket::{
    AddressFamily, LONGEST_BACKLOG, MsgFlags, SockFlag, SockType, bind, listen, recv, reuse_address,
    set_nodelay, socket,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

/// Small, because thousands of connections have a thread each.
const STACK_BYTES: usize = 64 * 1024;
/// Repetitions of each system call per result.
const CALLS: u32 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address: SocketAddr = args.next().ok_or("bench-plain ADDRESS FILE")?.parse()?;
    let file = args.next().ok_or("bench-plain ADDRESS FILE")?;
    let listener = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty())?;
    reuse_address(&listener)?;
    // Accepted sockets inherit it. Under injection the listener has it already.
    set_nodelay(&listener)?;
    let began = Instant::now();
    bind(&listener, address)?;
    let took = began.elapsed();
    listen(&listener, LONGEST_BACKLOG)?;
    let mut file = File::options().create(true).append(true).open(file)?;
    file.write_all(format!("{}\n", took.as_nanos()).as_bytes())?;
    for connection in TcpListener::from(listener).incoming() {
        let connection = connection?;
        std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // A client that has left needs no answer.
            let _ = serve(&connection);
        })?;
    }
    Ok(())
}

fn serve(connection: &TcpStream) -> Result<(), Box<dyn Error>> {
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let answer = match line.trim_end() {
            "calls" => calls()?,
            _ => "well\n".to_owned(),
        };
        (&mut &*connection).write_all(answer.as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// Nanoseconds per call: getppid(2), epoll_wait(2) without events, recv(2) without data.
fn calls() -> Result<String, Box<dyn Error>> {
    let getppid = each(|| Some(std::os::unix::process::parent_id()).map(drop));
    let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut told = [EpollEvent::empty(); 4];
    let wait = each(|| events.wait(&mut told, EpollTimeout::ZERO).ok().map(drop));
    let (socket, _other) = std::os::unix::net::UnixStream::pair()?;
    let mut bytes = [0; 16];
    let receive = each(|| recv(&socket, &mut bytes, MsgFlags::MSG_DONTWAIT).ok().map(drop));
    Ok(format!("{} {} {}\n", getppid.as_nanos(), wait.as_nanos(), receive.as_nanos()))
}

fn each(mut call: impl FnMut() -> Option<()>) -> Duration {
    let began = Instant::now();
    for _ in 0..CALLS {
        std::hint::black_box(call());
    }
    began.elapsed() / CALLS
}
