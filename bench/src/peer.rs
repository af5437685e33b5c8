//! A supervisor based on the crate beyond-handoff, upgraded over its trigger socket.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use handoff::sys::socket::peer_of;
use tempfile::TempDir;

use crate::Error;
use crate::marks::{Event, Reader};
use crate::programs::Programs;
use crate::rig::{Gaps, Options, Releases, Rig, Upgrade, end, free_address, wait_for};

/// A supervisor with one service.
#[derive(Debug)]
pub struct Peer {
    _directory: TempDir,
    _runtime: TempDir,
    supervisor: Child,
    pid: u32,
    trigger: BufReader<UnixStream>,
    address: SocketAddr,
    marks: PathBuf,
    releases: Releases,
    gaps: Gaps,
    reader: Reader,
    generations: usize,
}

impl Peer {
    /// Starts the supervisor and the service, with all files except the sockets in `place`, as for the other
    /// supervisor.
    pub fn start(programs: &Programs, place: &Path, options: &Options) -> Result<Self, Error> {
        let directory = tempfile::Builder::new().prefix("peer-").tempdir_in(place)?;
        let runtime = tempfile::Builder::new().prefix("handoff-bench-").tempdir()?;
        let path = |name: &str| directory.path().join(name);
        let releases = Releases::new(&programs.peer_service, directory.path())?;
        let (address, marks) = (free_address()?, path("marks"));
        let (trigger, control) = (runtime.path().join("trigger"), runtime.path().join("control"));

        let log = std::fs::File::create(path("supervisor.log"))?;
        let mut command: Vec<_> = options.wrapper.clone();
        command.extend([programs.peer_supervisor.clone().into(), trigger.clone().into()]);
        command.extend([address.to_string().into(), path("journal").into(), control.clone().into()]);
        command.extend([releases.current().into(), path("data").into(), marks.clone().into()]);
        command.extend([options.seal.as_millis().to_string().into(), control.into()]);
        let mut supervisor = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let mut reader = Reader::open(&marks)?;
        let connected = wait_for("the supervisor to answer", || {
            if let Some(status) = supervisor.try_wait()? {
                let log = std::fs::read_to_string(path("supervisor.log")).unwrap_or_default();
                return Err(format!("the supervisor ended ({status}):\n{log}").into());
            }
            Ok(UnixStream::connect(&trigger).ok())
        });
        let started = connected.and_then(|stream| {
            wait_for("the service to start", || Ok((reachable(&mut reader)? == 1).then_some(())))?;
            Ok(stream)
        });
        let stream = match started {
            Ok(stream) => stream,
            Err(error) => {
                end(supervisor.id(), &mut supervisor);
                return Err(error);
            }
        };
        Ok(Self {
            pid: peer_of(&stream)?.pid,
            _directory: directory,
            _runtime: runtime,
            supervisor,
            trigger: BufReader::new(stream),
            address,
            gaps: Gaps::new(&marks)?,
            marks,
            releases,
            reader,
            generations: 1,
        })
    }
}

fn reachable(reader: &mut Reader) -> Result<usize, Error> {
    Ok(reader.all()?.iter().filter(|mark| mark.event == Event::Reachable).count())
}

impl Rig for Peer {
    fn name(&self) -> &'static str {
        "beyond-handoff"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn marks(&self) -> &Path {
        &self.marks
    }

    fn supervisor(&self) -> u32 {
        self.pid
    }

    fn upgrade(&mut self) -> Result<Upgrade, Error> {
        let request = format!("upgrade {}\n", self.releases.advance().display());
        let mut answer = String::new();
        let began = Instant::now();
        self.trigger.get_mut().write_all(request.as_bytes())?;
        self.trigger.read_line(&mut answer)?;
        let client_us = began.elapsed().as_micros().try_into()?;
        let own_us = answer.trim_end().strip_prefix("committed ");
        let own_us = own_us.ok_or_else(|| format!("an upgrade was not committed: {answer:?}"))?.parse()?;
        self.generations += 1;
        let (reader, generations) = (&mut self.reader, self.generations);
        wait_for("the new process", || Ok((reachable(reader)? == generations).then_some(())))?;
        Ok(Upgrade { own_us, client_us, gap: self.gaps.measure()?, told_gap_us: None, phases: Vec::new() })
    }

    fn touch(&self) -> Result<(), Error> {
        self.releases.touch()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends its service and itself when its client disconnects.
        let _ = self.trigger.get_ref().shutdown(std::net::Shutdown::Both);
        let ended = wait_for("the supervisor to end", || Ok(self.supervisor.try_wait()?));
        if ended.is_err() {
            end(self.pid, &mut self.supervisor);
        }
    }
}
