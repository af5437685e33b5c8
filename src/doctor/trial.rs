//! Starts a process for each trial, and receives its result.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff_protocol::frame::Transport;

use super::Settings;
use super::copy::temporary_directory;
use super::inspection::Inspection;
use crate::config::{Adapter, Check, Listener, Service};
use crate::shim::shim_config::ShimConfig;
use crate::shim::trial::{TrialReply, TrialReport, TrialRequest, VERB};
use crate::slots::check_free;
use crate::supervisor::environment_of;
use crate::sys::channel::Channel;
use crate::sys::process::{Signal, kill, reap_blocking};
use crate::sys::readable::is_readable_by;
use crate::sys::spawn::{SpawnSpec, spawn};

/// Time of a trial in addition to that of the program: to start, to stop it, to clean up.
const OVERHEAD: Duration = Duration::from_secs(20);
/// Maximum number of bytes of a failed program's output to search for its last line.
const OUTPUT_TAIL_MAX: u64 = 2048;

/// The network of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// Its own namespace, where the addresses are free.
    Own,
    /// The network of this process.
    Host,
}

/// The result of a trial.
pub(super) enum Outcome {
    NotTried(String),
    Tried(TrialReport, Network),
}

/// The shared data of the trials of a service. Drop removes their files.
pub(super) struct TrialContext<'a> {
    service: &'a Service,
    settings: &'a Settings,
    watches: bool,
    directory: PathBuf,
}

impl<'a> TrialContext<'a> {
    pub(super) fn new(
        service: &'a Service,
        settings: &'a Settings,
        inspection: &Inspection,
    ) -> Result<Self, String> {
        let directory = temporary_directory().join(format!("handoff-doctor-{}", std::process::id()));
        // Fails if another user has created it. Others may pass: a program may drop its privileges before it reports
        // that it is ready.
        DirBuilder::new()
            .mode(0o711)
            .create(&directory)
            .map_err(|error| format!("cannot create {directory:?}: {error}"))?;
        let own = directory.join("own");
        fs::create_dir(&own).map_err(|error| format!("cannot create {own:?}: {error}"))?;
        let watches = inspection.no_inject.is_none() && !inspection.gains_privilege;
        Ok(Self { service, settings, watches, directory })
    }

    /// In its own network if that is permitted, else in that of this process if the addresses are free.
    pub(super) fn attempt(&self, adapter: Adapter, binary: &Path) -> Outcome {
        let why_not = match self.is_for_own_network() {
            Ok(()) => match self.attempt_in(Network::Own, adapter, binary) {
                Ok(TrialReply::NoNetwork(error)) => format!(
                    "it is not permitted to make a network for the trial ({error}): be root, or permit user namespaces"
                ),
                other => return outcome(other, Network::Own),
            },
            Err(why) => why,
        };
        let taken = self.service.listeners.iter().find_map(|listener| check_free(&listener.address).err());
        match taken {
            None => outcome(self.attempt_in(Network::Host, adapter, binary), Network::Host),
            Some(taken) => {
                Outcome::NotTried(format!("{taken}, and {why_not}; or stop the service for the trial"))
            }
        }
    }

    /// Its own network has only the addresses of the loopback device.
    fn is_for_own_network(&self) -> Result<(), String> {
        let elsewhere = self.service.listeners.iter().find(|listener| {
            let ip = listener.address.ip().map(|(local, _)| local.ip());
            ip.is_some_and(|ip| !ip.is_loopback() && !ip.is_unspecified())
        });
        elsewhere.map_or(Ok(()), |listener| {
            Err(format!(
                "a network that is made for the trial does not have the address {}",
                listener.address
            ))
        })
    }

    /// A program may end because it cannot use the offered `NOTIFY_SOCKET`. Unless the service file has `notify`, it
    /// is tried without the socket too.
    fn attempt_in(&self, network: Network, adapter: Adapter, binary: &Path) -> io::Result<TrialReply> {
        let answer = self.attempt_with(network, adapter, binary, true)?;
        match &answer {
            TrialReply::Tried(tried)
                if tried.ended && adapter != Adapter::Handoff && self.service.program.notify.is_none() =>
            {
                let again = self.attempt_with(network, adapter, binary, false)?;
                let works = matches!(&again, TrialReply::Tried(tried) if tried.works);
                Ok(if works { again } else { answer })
            }
            _ => Ok(answer),
        }
    }

    fn attempt_with(
        &self,
        network: Network,
        adapter: Adapter,
        binary: &Path,
        offers_notify: bool,
    ) -> io::Result<TrialReply> {
        let written = self.directory.join("output");
        // Each trial starts with an empty file.
        let output = File::options().write(true).create(true).truncate(true).mode(0o600).open(&written)?;
        let output = OwnedFd::from(output);
        let (channel, theirs) = Channel::pair()?;
        let request = serde_json::to_string(&self.trial_request(network, adapter, binary, offers_notify))?;
        let spawned = spawn(SpawnSpec {
            binary: std::env::current_exe()?,
            args: vec![VERB.into(), request.into()],
            env: environment_of(self.service).map_err(io::Error::other)?,
            working_dir: "/".into(),
            stdout: output.try_clone()?,
            stderr: output,
            channel: Some(theirs),
            files_limit: None,
        })?;
        let answer = hear(&channel, self.settings.limit * 2 + OVERHEAD);
        if answer.is_err() {
            let _ = kill(&spawned.pidfd, Signal::SIGTERM);
            if !ends_within(&spawned.pidfd, OVERHEAD) {
                let _ = kill(&spawned.pidfd, Signal::SIGKILL);
            }
        }
        reap_blocking(spawned.pidfd.as_fd())?;
        let mut answer = answer?;
        if let TrialReply::Tried(tried) = &mut answer
            && tried.ended
            && let Some(words) = last_output_line(&written)
        {
            tried.why.push_str(&format!("; its last words: {words}"));
        }
        Ok(answer)
    }

    fn trial_request(
        &self,
        network: Network,
        adapter: Adapter,
        binary: &Path,
        offers_notify: bool,
    ) -> TrialRequest {
        let (shared, own) = (self.directory.clone(), self.directory.join("own/trial"));
        let plan = ShimConfig { adapter, ..ShimConfig::new(self.service, binary.to_owned(), shared, own) };
        TrialRequest {
            parent: std::process::id(),
            plan,
            own_network: network == Network::Own,
            watches: self.watches,
            offers_notify,
            stream: self.service.channel == Transport::Stream,
            request: self.request(),
            limit: self.settings.limit,
        }
    }
}

impl TrialContext<'_> {
    /// The request to have under way at the stop signal, and its listener.
    fn request(&self) -> Option<(String, Vec<u8>)> {
        let probed = match self.service.probe.as_ref().map(|probe| &probe.check) {
            Some(Check::Http(http)) => Some(http),
            _ => None,
        };
        let is_stream =
            |listener: &&Listener| listener.address.ip().is_some() && !listener.address.is_datagram();
        let first = self.service.listeners.iter().find(is_stream).map(|listener| listener.name.to_string());
        let listener = probed.map_or(first, |http| Some(http.listener.to_string()))?;
        let get = || match probed {
            Some(http) => {
                format!("{} {} HTTP/1.1\r\nHost: localhost\r\n\r\n", http.method, http.path).into_bytes()
            }
            None => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        };
        Some((listener, self.settings.request.clone().unwrap_or_else(get)))
    }
}

impl Drop for TrialContext<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn outcome(answer: io::Result<TrialReply>, network: Network) -> Outcome {
    match answer {
        Ok(TrialReply::Tried(tried)) => Outcome::Tried(tried, network),
        Ok(TrialReply::NotTried(why) | TrialReply::NoNetwork(why)) => Outcome::NotTried(why),
        Err(error) => Outcome::NotTried(format!("the trial itself failed: {error}")),
    }
}

fn hear(channel: &Channel, limit: Duration) -> io::Result<TrialReply> {
    if !is_readable_by(channel, Instant::now() + limit)? {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")));
    }
    let mut buffer = Vec::new();
    let packet = channel.recv(&mut buffer)?;
    let packet = packet.ok_or_else(|| io::Error::other("it ended without an answer"))?;
    serde_json::from_slice(&buffer[..packet.len]).map_err(io::Error::other)
}

fn ends_within(pidfd: &OwnedFd, limit: Duration) -> bool {
    is_readable_by(pidfd, Instant::now() + limit).unwrap_or(false)
}

/// The last line of a program's output.
fn last_output_line(path: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(OUTPUT_TAIL_MAX))).ok()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_TAIL_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let line =
        text.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with("handoff: "))?;
    Some(line.chars().filter(|it| !it.is_control()).take(200).collect())
}
