//! Finds out which adapter a program can use: by examining it, and by trying it out where it cannot disturb the
//! service.

mod advice;
mod copy;
mod inspection;
mod others;
mod trial;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::config::{Adapter, ListenAddress, Mode, Service};
use crate::shim::trial::TrialReport;
use crate::slots::{SlotError, check_free};
use copy::TrialProgram;
pub use copy::check_copy;
pub use inspection::{Inspection, inspect};
use trial::{Network, Outcome, TrialContext};

/// The settings of an examination.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program to examine.
    pub binary: PathBuf,
    /// The store of the versions of the service. The trial uses a copy next to them, unless the service file has
    /// `store = false`.
    pub versions: PathBuf,
    /// A request to the program, to see its fate at the stop signal; without it, the request of the probe or `GET /`.
    pub request: Option<Vec<u8>>,
    /// Time limit of each trial.
    pub limit: Duration,
    /// Run the program even if it may be a second one on the same data.
    pub run_anyway: bool,
    /// Whether the service runs, or may be started at any time, according to the daemon; `None` without a daemon.
    pub daemon_says: Option<bool>,
}

/// The adapters that a program can use, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The name of the service.
    pub service: String,
    /// The program.
    pub binary: PathBuf,
    /// The kind of program.
    pub kind: String,
    /// The adapter of the service file.
    pub configured: Adapter,
    /// One finding for each adapter.
    pub adapters: Vec<Finding>,
    /// Whether the trials were in their own network; `None` if nothing was tried.
    pub own_network: Option<bool>,
    /// Other remarks; sentences without a full stop.
    pub remarks: Vec<String>,
    /// The recommended adapter.
    pub advised: Option<Adapter>,
    /// A sentence with the recommendation, and what to put into the service file.
    pub advice: String,
}

/// The findings about one adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The adapter.
    pub adapter: Adapter,
    /// Whether it works.
    pub verdict: Compatibility,
    /// The reason; a clause without a full stop.
    pub why: String,
    /// The observations, if it was tried.
    #[serde(skip)]
    pub tried: Option<TrialReport>,
}

/// Whether an adapter works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compatibility {
    /// It works.
    Works,
    /// It does not work.
    DoesNot,
    /// Unknown.
    NotTried,
}

impl Diagnosis {
    /// Whether the adapter of the service file works.
    pub fn is_good(&self) -> bool {
        self.adapters.iter().any(|it| it.adapter == self.configured && it.verdict == Compatibility::Works)
    }
}

/// Examines the program of a service. Blocks for some seconds. Removes all files that it writes; the program may
/// leave some.
pub fn examine(service: &Service, settings: &Settings) -> Diagnosis {
    let subject = TrialProgram::of(service, &settings.binary, &settings.versions);
    let mut inspection = match &subject {
        Ok(subject) => inspect(service, &subject.path),
        Err(why) => Inspection { faults: vec![why.clone()], ..Inspection::default() },
    };
    inspection.remarks.extend(subject.iter().flat_map(|subject| subject.remarks.clone()));
    inspection.remarks.extend(unreachable_ports(service));
    let (outcomes, own_network) = match (obstacle(service, settings, &inspection), &subject) {
        (Some((verdict, why)), _) => (ADAPTERS.map(|adapter| finding(adapter, verdict, why.clone())), None),
        (None, Ok(subject)) => try_all(service, settings, &mut inspection, subject),
        (None, Err(why)) => {
            (ADAPTERS.map(|adapter| finding(adapter, Compatibility::DoesNot, why.clone())), None)
        }
    };
    advice::diagnosis(service, settings, inspection, outcomes, own_network)
}

/// In order of preference.
const ADAPTERS: [Adapter; 3] = [Adapter::Handoff, Adapter::ListenFds, Adapter::Inject];

fn finding(adapter: Adapter, verdict: Compatibility, why: String) -> Finding {
    Finding { adapter, verdict, why, tried: None }
}

/// Why no trial is possible.
fn obstacle(
    service: &Service,
    settings: &Settings,
    inspection: &Inspection,
) -> Option<(Compatibility, String)> {
    if !inspection.faults.is_empty() {
        return Some((Compatibility::DoesNot, inspection.faults.join("; ")));
    }
    let running = running(service, settings.daemon_says);
    if service.mode == Mode::Exclusive && !settings.run_anyway {
        let danger = "in exclusive mode a second program on the same data is a danger";
        let remedy = "stop the service, or use --yes-run-it if the program does no harm next to it";
        match running {
            RunningState::No => {}
            RunningState::Yes(why) => {
                return Some((Compatibility::NotTried, format!("{why}, and {danger}; {remedy}")));
            }
            RunningState::Unknown => {
                let why =
                    "without a daemon and without a listener it cannot be known whether the service runs";
                return Some((Compatibility::NotTried, format!("{why}, and {danger}; {remedy}")));
            }
        }
    }
    // A unix socket path is the same in every network, and a trial would take it from the service.
    let paths =
        service.listeners.iter().filter(|listener| matches!(listener.address, ListenAddress::Unix(_)));
    let taken = paths.filter_map(|listener| check_free(&listener.address).err()).next()?;
    Some((
        Compatibility::NotTried,
        format!("{taken}; only one process can have a path, so the service must be stopped for a trial"),
    ))
}

/// In its own network, a trial may use ports that the daemon may not use.
fn unreachable_ports(service: &Service) -> Vec<String> {
    let errors = service.listeners.iter().filter_map(|listener| check_free(&listener.address).err());
    let privileged = errors.filter(|error| matches!(error, SlotError::Privileged { .. }));
    privileged.map(|error| format!("a daemon of this user cannot open a listener: {error}")).collect()
}

enum RunningState {
    Yes(String),
    No,
    Unknown,
}

/// The keeper of a running service holds its listeners, even without a daemon.
fn running(service: &Service, daemon_says: Option<bool>) -> RunningState {
    let taken = service.listeners.iter().find_map(|listener| check_free(&listener.address).err());
    // An address that this machine does not have is not in use.
    let taken = taken.filter(|error| matches!(error, SlotError::InUse { .. }));
    match (daemon_says, taken) {
        (Some(true), _) => RunningState::Yes("the service runs".to_owned()),
        (_, Some(taken)) => RunningState::Yes(format!("something runs already: {taken}")),
        (Some(false), None) => RunningState::No,
        (None, None) if service.listeners.is_empty() => RunningState::Unknown,
        (None, None) => RunningState::No,
    }
}

fn try_all(
    service: &Service,
    settings: &Settings,
    inspection: &mut Inspection,
    subject: &TrialProgram,
) -> ([Finding; 3], Option<bool>) {
    let context = match TrialContext::new(service, settings, inspection) {
        Ok(context) => context,
        Err(why) => {
            return (ADAPTERS.map(|adapter| finding(adapter, Compatibility::NotTried, why.clone())), None);
        }
    };
    let mut network = None;
    let findings = ADAPTERS.map(|adapter| {
        if adapter == Adapter::Inject
            && let Some(why) = &inspection.no_inject
        {
            return finding(adapter, Compatibility::DoesNot, why.clone());
        }
        match context.attempt(adapter, &subject.path) {
            Outcome::NotTried(why) => finding(adapter, Compatibility::NotTried, why),
            Outcome::Tried(tried, used) => {
                network = Some(used == Network::Own);
                let verdict = if tried.works { Compatibility::Works } else { Compatibility::DoesNot };
                Finding { tried: Some(tried.clone()), ..finding(adapter, verdict, tried.why) }
            }
        }
    });
    if subject.is_copy && network.is_some() && findings.iter().all(|it| it.verdict != Compatibility::Works) {
        inspection.remarks.extend(original_works(service, settings, &context));
    }
    (findings, network)
}

/// Tests whether only the copy fails, because it needs files next to the original.
fn original_works(service: &Service, settings: &Settings, context: &TrialContext<'_>) -> Option<String> {
    if !settings.binary.is_file() {
        return None;
    }
    match context.attempt(service.adapter, &settings.binary) {
        Outcome::Tried(tried, _) if tried.works => Some(format!(
            "{:?} works where it is, with adapter = {:?}, but a copy of it alone does not, and a copy is what runs: name the whole \
             directory as binary and the file by member in [update], or write store = false",
            settings.binary,
            service.adapter.spelling()
        )),
        _ => None,
    }
}
