//! What a service depends on: the keys `requires`, `wants` and `after` of all service files.

use std::collections::BTreeMap;

use handoff_protocol::dependency::Need;
use handoff_protocol::ids::ServiceName;

use super::error::{Error, Position, Report};
use super::names::nearest;
use super::service::Service;
use super::table::Section;

const KEYS: [(&str, Need); 3] =
    [("requires", Need::Requires), ("wants", Need::Wants), ("after", Need::After)];

/// A service that another one depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// How.
    pub need: Need,
    /// Its name.
    pub name: ServiceName,
    /// The place of the key in the file.
    pub at: Option<Position>,
}

impl Dependency {
    /// The key in the service file.
    pub fn key(&self) -> &'static str {
        KEYS.iter().find(|(_, need)| *need == self.need).map_or("", |(key, _)| key)
    }
}

/// Reads the keys. A service that several of them name counts by the first one.
pub(super) fn read(report: &mut Report, root: &Section) -> Vec<Dependency> {
    let mut found: Vec<Dependency> = Vec::new();
    for (key, need) in KEYS {
        let names = read_key(report, root, key);
        for name in names {
            if !found.iter().any(|dependency| dependency.name == name) {
                found.push(Dependency { need, name, at: root.at(report, key) });
            }
        }
    }
    found
}

fn read_key(report: &mut Report, root: &Section, key: &'static str) -> Vec<ServiceName> {
    let names = root.strings(report, key).unwrap_or_default();
    let mut read = Vec::new();
    for name in names {
        match name.parse() {
            Ok(name) if read.contains(&name) => {
                root.refuse(report, key, &format!("names {name:?} twice"), "name each service once");
            }
            Ok(name) => read.push(name),
            Err(error) => {
                let cause = format!("{name:?} is no service name: {error}");
                root.refuse(report, key, &cause, &format!("write {key} = [\"name-of-a-service\"]"));
            }
        }
    }
    read
}

/// Finds mistakes in the dependencies as a whole: names without a service, and services that would wait for themselves.
/// A service that is only wanted may be missing. `exists` reports services that are not in `services`.
pub(super) fn check(
    services: &BTreeMap<ServiceName, Service>,
    exists: impl Fn(&ServiceName) -> bool,
) -> Vec<(ServiceName, Error)> {
    let mut errors = Vec::new();
    for service in services.values() {
        let is_missing = |it: &&Dependency| {
            it.need != Need::Wants && !services.contains_key(&it.name) && !exists(&it.name)
        };
        for dependency in service.dependencies.iter().filter(is_missing) {
            let name = dependency.name.as_str();
            let hint = match nearest(name, services.keys().map(ServiceName::as_str)) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "name a service that has a file, or remove it".to_owned(),
            };
            let cause = format!("there is no service {name:?}");
            errors.push((service.name.clone(), mistake(service, dependency, cause, hint)));
        }
        if let Some(round) = way_back(services, service)
            && let Some(first) = service.dependencies.iter().find(|it| Some(&&it.name) == round.get(1))
        {
            let names: Vec<&str> = round.iter().map(|name| name.as_str()).collect();
            let cause = format!("{} would wait for itself: {}", service.name, names.join(" after "));
            errors.push((
                service.name.clone(),
                mistake(service, first, cause, "take one of them out".to_owned()),
            ));
        }
    }
    errors
}

fn mistake(service: &Service, dependency: &Dependency, cause: String, hint: String) -> Error {
    let key = Some(dependency.key().to_owned());
    Error { file: service.file.clone(), at: dependency.at, key, cause, hint }
}

/// The shortest path from a service, through the services that it waits for, back to itself.
fn way_back<'s>(
    services: &'s BTreeMap<ServiceName, Service>,
    from: &'s Service,
) -> Option<Vec<&'s ServiceName>> {
    let mut ways = std::collections::VecDeque::from([vec![&from.name]]);
    let mut seen = std::collections::BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let last = way.last().and_then(|name| services.get(*name));
        for next in last.into_iter().flat_map(|service| &service.dependencies).map(|it| &it.name) {
            let longer = [&way[..], &[next]].concat();
            if *next == from.name {
                return Some(longer);
            }
            if seen.insert(next) {
                ways.push_back(longer);
            }
        }
    }
    None
}
