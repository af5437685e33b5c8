//! The measured service: it embeds the library, drains and seals at once or after a fixed time, and holds the lock of
//! its data.

use std::time::Duration;

use handoff_bench::acceptor::{Acceptor, Args};
use handoff_bench::marks::{Event, Marks};
use handoff_service::{self as service, BoxError, Drain, Seal, Server};

struct Service {
    acceptor: Acceptor,
    seal: Duration,
    drain: Duration,
}

impl Server for Service {
    fn drain(&mut self, _: Drain) -> Result<(), BoxError> {
        std::thread::sleep(self.drain);
        Ok(())
    }

    fn seal(&mut self, _: Seal) -> Result<(), BoxError> {
        self.acceptor.stop()?;
        std::thread::sleep(self.seal);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), BoxError> {
        Ok(self.acceptor.resume()?)
    }
}

fn main() -> Result<(), BoxError> {
    let Some(args) = Args::of_this_process()? else { return Ok(()) };
    let mut starting = service::start()?;
    let listener = starting.tcp_listener("main", "127.0.0.1:0")?;
    let marks = Marks::open(&args.marks)?;
    let drain_ms = args.more.first().and_then(|ms| ms.to_str()?.parse().ok()).unwrap_or(0);
    let drain = Duration::from_millis(drain_ms);
    let begun = starting.begin(Some(&args.data))?;
    marks.note(Event::Begun)?;
    let acceptor = Acceptor::start(listener, marks)?;
    begun.ready()?.run(Service { acceptor, seal: args.seal, drain })?;
    Ok(())
}
