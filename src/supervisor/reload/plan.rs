//! What a reload would do: a pure function of what the daemon knows and of what the files say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use handoff_protocol::ids::ServiceName;

use crate::config::{self, Cost, Difference, Error, differences, judge};
use crate::control::api::{FileChange, PlannedService};

/// A service as the daemon knows it.
#[derive(Debug, Clone)]
pub(super) struct KnownService {
    pub(super) state: KnownState,
    /// The settings of the process that serves, if one does.
    pub(super) in_use: Option<Rc<config::Service>>,
    /// The settings that the daemon goes by.
    pub(super) settings: config::Service,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownState {
    /// It has never run.
    New,
    /// Nothing of it runs.
    Stopped,
    /// It runs, or is to run.
    Running,
}

/// The file of a service, or its mistakes.
pub(super) type FileNow = Result<config::Service, Vec<Error>>;

/// The services that differ, and the files that they will go by.
#[derive(Debug)]
pub(super) struct Plan {
    /// Sorted by name.
    pub(super) rows: Vec<PlannedService>,
    pub(super) files: BTreeMap<ServiceName, config::Service>,
}

impl Plan {
    /// `others` are mistakes that belong to no service: of the directory, and of file names.
    pub(super) fn make(
        known: &BTreeMap<ServiceName, KnownService>,
        files: BTreeMap<ServiceName, FileNow>,
        others: Vec<Error>,
    ) -> Self {
        let names: BTreeSet<ServiceName> = known.keys().chain(files.keys()).cloned().collect();
        let is_there: BTreeSet<ServiceName> = files.keys().cloned().collect();
        // Of two services with one address, the later one is refused.
        let mut files: Vec<(ServiceName, FileNow)> = files.into_iter().collect();
        files.sort_by_key(|(name, file)| rank(known.get(name), file.as_ref().ok()));
        let loaded = judge(files.into_iter().map(|(_, file)| file), |name| is_there.contains(name));
        let mut errors: BTreeMap<ServiceName, Vec<Error>> = BTreeMap::new();
        let mut rows = Vec::new();
        for error in others.into_iter().chain(loaded.errors) {
            match service_of(&error.file).filter(|name| is_there.contains(name)) {
                Some(name) => errors.entry(name).or_default().push(error),
                None => rows.push(PlannedService { errors: vec![error], ..row(None, FileChange::Broken) }),
            }
        }
        for name in names {
            let errors = errors.remove(&name).unwrap_or_default();
            let service = Some(name.clone());
            rows.push(match (known.get(&name), loaded.services.get(&name)) {
                _ if !errors.is_empty() => PlannedService { errors, ..row(service, FileChange::Broken) },
                (Some(known), Some(file)) if known.state != KnownState::New => compared(service, known, file),
                (_, Some(file)) => {
                    let cost = if file.autostart { Cost::Start } else { Cost::Nothing };
                    PlannedService { cost, ..row(service, FileChange::Added) }
                }
                (Some(known), None) => {
                    let cost = if known.state == KnownState::Running { Cost::Stop } else { Cost::Nothing };
                    PlannedService { cost, ..row(service, FileChange::Removed) }
                }
                (None, None) => continue,
            });
        }
        Self { rows, files: loaded.services }
    }

    /// The services whose clients would be refused.
    pub(super) fn stops(&self) -> Vec<&PlannedService> {
        self.rows.iter().filter(|row| row.cost.stops()).collect()
    }

    /// The services with this cost.
    pub(super) fn that_cost(&self, cost: Cost) -> Vec<ServiceName> {
        let rows = self.rows.iter().filter(|row| row.cost == cost && row.change != FileChange::Broken);
        rows.filter_map(|row| row.service.clone()).collect()
    }
}

fn row(service: Option<ServiceName>, change: FileChange) -> PlannedService {
    PlannedService { service, change, keys: Vec::new(), cost: Cost::Nothing, errors: Vec::new() }
}

fn compared(service: Option<ServiceName>, known: &KnownService, file: &config::Service) -> PlannedService {
    let all = changes(known.in_use.as_deref(), &known.settings, file);
    let cost = all.iter().map(|it| it.cost).max().filter(|_| known.state == KnownState::Running);
    PlannedService {
        keys: all.iter().map(|it| it.key.clone()).collect(),
        cost: cost.unwrap_or(Cost::Nothing),
        ..row(service, if all.is_empty() { FileChange::Unchanged } else { FileChange::Changed })
    }
}

/// What differs from the settings that the daemon goes by, or, where only a process knows them, from its settings.
pub(super) fn changes(
    in_use: Option<&config::Service>,
    settings: &config::Service,
    file: &config::Service,
) -> Vec<Difference> {
    let mut all = differences(settings, file);
    for difference in in_use.map(|in_use| differences(in_use, file)).unwrap_or_default() {
        if difference.cost != Cost::Nothing && !all.iter().any(|other| other.key == difference.key) {
            all.push(difference);
        }
    }
    all
}

/// Which of two services with the same address has it: the one that has it now, then the one that is known.
fn rank(known: Option<&KnownService>, file: Option<&config::Service>) -> u8 {
    let Some(known) = known else { return 2 };
    let addresses =
        |it: &config::Service| it.listeners.iter().map(|it| it.address.clone()).collect::<Vec<_>>();
    let has_them = file.is_none_or(|file| addresses(file) == addresses(&known.settings));
    if has_them { 0 } else { 1 }
}

fn service_of(file: &Path) -> Option<ServiceName> {
    file.file_stem()?.to_str()?.parse().ok()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
