//! The same service for the crate beyond-handoff, written as in its README, with one difference in its favor: it
//! accepts before it announces readiness, not after.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use handoff_bench::Error;
use handoff_bench::acceptor::{Acceptor, Args};
use handoff_bench::marks::{Event, Marks};
use peer::{
    DataDirLock, DrainReport, Drainable, Incumbent, ReadinessSnapshot, Role, SealReport, StateSnapshot,
    detect_role,
};

struct Service {
    acceptor: Mutex<Acceptor>,
    seal: Duration,
}

impl Service {
    fn acceptor(&self) -> std::sync::MutexGuard<'_, Acceptor> {
        self.acceptor.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drainable for Service {
    fn drain(&self, _: Instant) -> peer::Result<DrainReport> {
        self.acceptor().stop()?;
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self) -> peer::Result<SealReport> {
        std::thread::sleep(self.seal);
        Ok(SealReport::default())
    }

    fn resume_after_abort(&self) -> peer::Result<()> {
        Ok(self.acceptor().resume()?)
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

fn main() -> Result<(), Error> {
    let Some(args) = Args::of_this_process()? else { return Ok(()) };
    let socket = args.more.first().ok_or("no control socket is named")?;
    let (acceptor, incumbent) = match detect_role()? {
        Role::ColdStart { mut inherited } => {
            let listener = inherited.take("main").ok_or("no listener was inherited")?;
            let marks = Marks::open(&args.marks)?;
            let lock = DataDirLock::acquire_or_break_stale(&args.data)?;
            let acceptor = Acceptor::start(listener, marks)?;
            (acceptor, Incumbent::bind_cold_start(socket, lock)?)
        }
        Role::Successor(successor) => {
            let successor = successor.handshake(Vec::new())?;
            let marks = Marks::open(&args.marks)?;
            let mut successor = successor.wait_for_begin()?;
            let listener = successor.take_listener("main").ok_or("no listener was inherited")?;
            let lock = DataDirLock::acquire(&args.data)?;
            let acceptor = Acceptor::start(listener, marks)?;
            let ready = ReadinessSnapshot { healthz_ok: true, ..ReadinessSnapshot::default() };
            (acceptor, successor.announce_and_bind(ready, socket, lock)?)
        }
    };
    acceptor.note(Event::Reachable)?;
    incumbent.serve(Service { acceptor: Mutex::new(acceptor), seal: args.seal })?;
    Ok(())
}
