//! Many clients that connect while no process accepts.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use handoff::sys::errno::Errno;
use handoff::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, connect, error_of, recv, send, socket,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::Serialize;

use crate::Error;
use crate::marks::{Event, Reader};
use crate::rig::{Gap, LIMIT, Rig, wait_for};
use crate::spread::Spread;

/// A connect that takes longer has retransmitted its SYN, which happens after one second.
const RETRANSMITTED: Duration = Duration::from_millis(900);

/// What the clients saw of one upgrade.
#[derive(Debug, Serialize)]
pub struct Burst {
    /// The name of the rig.
    pub name: &'static str,
    /// Number of clients.
    pub clients: usize,
    /// Time without accepts, in microseconds.
    pub gap_us: u64,
    /// Time from connect to connection, per client.
    pub connect: Spread,
    /// Time from connect to answer, per client.
    pub answer: Spread,
    /// Number of connects that took more than 900 ms.
    pub retransmitted: usize,
    /// Number of clients without an answer.
    pub failed: usize,
}

/// Upgrades `rig`, whose service seals slowly, and lets `count` clients connect once it has stopped accepting.
pub fn measure(rig: &mut dyn Rig, count: usize) -> Result<Burst, Error> {
    let address = rig.address();
    let mut marks = Reader::open(rig.marks())?;
    let stops = |marks: &mut Reader| -> Result<usize, Error> {
        Ok(marks.all()?.iter().filter(|mark| mark.event == Event::Stopped).count())
    };
    let before = stops(&mut marks)?;
    let (gap, clients) = std::thread::scope(|scope| {
        let clients = scope.spawn(move || {
            wait_for("the service to stop accepting", || Ok((stops(&mut marks)? > before).then_some(())))?;
            Clients::new(address)?.run(count)
        });
        let gap: Result<Gap, Error> = rig.upgrade().map(|upgrade| upgrade.gap);
        let clients = clients.join().unwrap_or_else(|_| Err("the clients panicked".into()));
        Ok::<_, Error>((gap?, clients?))
    })?;
    let connects: Vec<Duration> = clients.iter().filter_map(|client| client.connected).collect();
    let answers = clients.iter().filter_map(|client| client.answered);
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Ok(Burst {
        name: rig.name(),
        clients: count,
        gap_us: gap.us,
        retransmitted: connects.iter().filter(|time| **time > RETRANSMITTED).count(),
        connect: Spread::of(connects.into_iter().map(micros)),
        answer: Spread::of(answers.map(micros)),
        failed: clients.iter().filter(|client| client.answered.is_none()).count(),
    })
}

/// One thread serves all clients, so that the number of threads does not affect the result.
struct Clients {
    address: SocketAddr,
    epoll: Epoll,
    all: Vec<Client>,
    open: usize,
}

struct Client {
    socket: Option<OwnedFd>,
    began: Instant,
    connected: Option<Duration>,
    answered: Option<Duration>,
}

impl Clients {
    fn new(address: SocketAddr) -> Result<Self, Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { address, epoll, all: Vec::new(), open: 0 })
    }

    fn run(mut self, count: usize) -> Result<Vec<Client>, Error> {
        for _ in 0..count {
            self.connect()?;
            self.look(Duration::ZERO)?;
        }
        let until = Instant::now() + LIMIT;
        while self.open > 0 && Instant::now() < until {
            self.look(Duration::from_millis(100))?;
        }
        Ok(self.all)
    }

    fn connect(&mut self) -> Result<(), Error> {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK)?;
        let began = Instant::now();
        match connect(&socket, self.address) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(format!("connect: {error}").into()),
        }
        let data = self.all.len().try_into()?;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLOUT, data))?;
        self.all.push(Client { socket: Some(socket), began, connected: None, answered: None });
        self.open += 1;
        Ok(())
    }

    fn look(&mut self, wait: Duration) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); 256];
        let count = match self.epoll.wait(&mut events, EpollTimeout::try_from(wait)?) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            let data = event.data();
            let client = &mut self.all[usize::try_from(data)?];
            let done = match client.connected {
                None => client.greet(&self.epoll, data)?,
                Some(_) => client.hear(),
            };
            if done {
                client.socket = None;
                self.open -= 1;
            }
        }
        Ok(())
    }
}

impl Client {
    /// Sends the request once it is connected. A failed connect completes the client.
    fn greet(&mut self, epoll: &Epoll, data: u64) -> Result<bool, Error> {
        let Some(socket) = &self.socket else { return Ok(true) };
        if error_of(socket)?.is_some() {
            return Ok(true);
        }
        self.connected = Some(self.began.elapsed());
        if send(socket, b"burst\n", MsgFlags::MSG_NOSIGNAL).is_err() {
            return Ok(true);
        }
        epoll.modify(socket, &mut EpollEvent::new(EpollFlags::EPOLLIN, data))?;
        Ok(false)
    }

    /// Reads the answer, or the end of the connection.
    fn hear(&mut self) -> bool {
        let Some(socket) = &self.socket else { return true };
        let mut buffer = [0; 16];
        match recv(socket, &mut buffer, MsgFlags::empty()) {
            Ok(count) if &buffer[..count] == b"burst\n" => self.answered = Some(self.began.elapsed()),
            Err(Errno::EAGAIN | Errno::EINTR) => return false,
            Ok(_) | Err(_) => {}
        }
        true
    }
}
