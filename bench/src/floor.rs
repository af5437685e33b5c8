//! The costs of the machine itself, which no supervisor can avoid.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use handoff::sys::socket::{MsgFlags, SockType, pair, recv, send};
use serde::Serialize;

use crate::Error;
use crate::programs::Programs;
use crate::spread::Spread;

/// The lower bounds for every supervisor.
#[derive(Debug, Serialize)]
pub struct Floor {
    /// Starting a process of the service, which exits at once, and waiting for it.
    pub process: Spread,
    /// Appending 4 KiB to a file, and waiting for the disk.
    pub sync: Spread,
    /// Sending a packet to another thread over a socket, and receiving one.
    pub round_trip: Spread,
}

/// Measures each `count` times.
pub fn measure(programs: &Programs, place: &Path, count: usize) -> Result<Floor, Error> {
    let mut file = File::create(place.join("floor"))?;
    Ok(Floor {
        process: repeat(count, || {
            let status = Command::new(&programs.service).stdin(Stdio::null()).status()?;
            if status.success() { Ok(()) } else { Err(format!("the service ended with {status}").into()) }
        })?,
        sync: repeat(count, || {
            file.write_all(&[7; 4096])?;
            Ok(file.sync_data()?)
        })?,
        round_trip: round_trip(count)?,
    })
}

fn round_trip(count: usize) -> Result<Spread, Error> {
    let (here, there) = pair(SockType::SeqPacket)?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut packet = [0; 64];
            while let Ok(count @ 1..) = recv(&there, &mut packet, MsgFlags::empty()) {
                if send(&there, &packet[..count], MsgFlags::MSG_NOSIGNAL).is_err() {
                    return;
                }
            }
        });
        let spread = repeat(count, || {
            send(&here, &[7; 64], MsgFlags::MSG_NOSIGNAL)?;
            recv(&here, &mut [0; 64], MsgFlags::empty())?;
            Ok(())
        });
        drop(here);
        spread
    })
}

fn repeat(count: usize, mut work: impl FnMut() -> Result<(), Error>) -> Result<Spread, Error> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        work()?;
        times.push(began.elapsed().as_micros().try_into()?);
    }
    Ok(Spread::of(times))
}
