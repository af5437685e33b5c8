//! The whole function of a measured service: it accepts, answers one line with one line, and stops at once on
//! request. Both services use it, so that they differ only in the way of their upgrade.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use handoff::sys::errno::Errno;
use handoff::sys::event_fd::{event_fd, sleep, wake};
use handoff::sys::poll::{PollFd, PollFlags, found, poll};

use crate::Error;
use crate::marks::{Event, Marks};

/// Time limit; clients of the benchmark write at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The command line of a service.
#[derive(Debug)]
pub struct Args {
    /// The data directory, which it locks.
    pub data: PathBuf,
    /// The file for its marks.
    pub marks: PathBuf,
    /// The duration of its seal.
    pub seal: Duration,
    /// Further arguments.
    pub more: Vec<PathBuf>,
}

impl Args {
    /// Parses the arguments of this process: data directory, marks, duration of the seal in milliseconds, more.
    /// `None` without arguments: then the process must exit at once, which measures the cost of starting a process.
    pub fn of_this_process() -> Result<Option<Self>, Error> {
        let mut args = std::env::args_os().skip(1);
        let Some(data) = args.next() else { return Ok(None) };
        let marks = args.next().ok_or("no file for the marks is named")?;
        let seal_ms =
            args.next().and_then(|ms| ms.to_str()?.parse().ok()).ok_or("no length of the seal is given")?;
        Ok(Some(Self {
            data: data.into(),
            marks: marks.into(),
            seal: Duration::from_millis(seal_ms),
            more: args.map(PathBuf::from).collect(),
        }))
    }
}

/// A thread that accepts, and a thread for each connection.
#[derive(Debug)]
pub struct Acceptor {
    listener: Arc<TcpListener>,
    marks: Arc<Marks>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Acceptor {
    /// Starts accepting.
    pub fn start(listener: TcpListener, marks: Marks) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let stop = event_fd(true)?;
        let mut acceptor =
            Self { listener: Arc::new(listener), marks: Arc::new(marks), stop: Arc::new(stop), thread: None };
        acceptor.resume()?;
        Ok(acceptor)
    }

    /// Accepts again. Returns once it does.
    pub fn resume(&mut self) -> io::Result<()> {
        sleep(&*self.stop);
        let (listener, marks, stop) = (self.listener.clone(), self.marks.clone(), self.stop.clone());
        let (sender, accepting) = mpsc::sync_channel(1);
        self.thread = Some(thread::Builder::new().spawn(move || {
            let _ = sender.send(marks.note(Event::Accepting));
            run(&listener, &marks, &stop)
        })?);
        accepting.recv().map_err(io::Error::other)?
    }

    /// Stops accepting. Returns when everything that was accepted is answered.
    pub fn stop(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        wake(&*self.stop);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the acceptor panicked")))
    }

    /// Writes `event` to the marks.
    pub fn note(&self, event: Event) -> io::Result<()> {
        self.marks.note(event)
    }
}

fn run(listener: &TcpListener, marks: &Marks, stop: &OwnedFd) -> io::Result<()> {
    // The end of the scope waits for all its threads.
    thread::scope(|scope| {
        loop {
            let mut fds = [stop.as_fd(), listener.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !found(&fds[0]).is_empty() {
                return marks.note(Event::Stopped);
            }
            match listener.accept() {
                // The client notices and counts errors of a connection.
                Ok((stream, _)) => drop(thread::Builder::new().spawn_scoped(scope, move || answer(&stream))?),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    })
}

fn answer(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    stream.write_all(line.as_bytes())
}
