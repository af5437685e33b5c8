//! The order of upgrades, from the keys `after` of all service files.

use std::collections::BTreeMap;

use handoff_protocol::ids::ServiceName;

use super::error::{Error, Report};
use super::names::nearest;
use super::service::Service;
use super::table::Section;

const HINT: &str = "write after = [\"name-of-a-service\"]";

/// Reads the key `after`.
pub(super) fn read(report: &mut Report, root: &Section) -> Vec<ServiceName> {
    let names = root.strings(report, "after").unwrap_or_default();
    let mut after = Vec::new();
    for name in names {
        match name.parse() {
            Ok(name) if after.contains(&name) => {
                root.refuse(report, "after", &format!("names {name:?} twice"), "name each service once");
            }
            Ok(name) => after.push(name),
            Err(error) => {
                root.refuse(report, "after", &format!("{name:?} is no service name: {error}"), HINT);
            }
        }
    }
    after
}

/// Finds mistakes in the order as a whole: names without a service, and services that would wait for themselves.
/// `exists` reports services that are not in `services`.
pub(super) fn check(
    services: &BTreeMap<ServiceName, Service>,
    exists: impl Fn(&ServiceName) -> bool,
) -> Vec<(ServiceName, Error)> {
    let mut errors = Vec::new();
    for service in services.values() {
        for name in service.after.iter().filter(|name| !services.contains_key(*name) && !exists(name)) {
            let hint = match nearest(name.as_str(), services.keys().map(ServiceName::as_str)) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "name a service that has a file, or remove it".to_owned(),
            };
            errors.push((
                service.name.clone(),
                mistake(service, format!("there is no service {:?}", name.as_str()), hint),
            ));
        }
        if let Some(round) = way_back(services, service) {
            let round: Vec<&str> = round.iter().map(|name| name.as_str()).collect();
            let cause = format!("{} would wait for itself: {}", service.name, round.join(" after "));
            errors.push((service.name.clone(), mistake(service, cause, "take one of them out".to_owned())));
        }
    }
    errors
}

fn mistake(service: &Service, cause: String, hint: String) -> Error {
    Error { file: service.file.clone(), at: service.after_at, key: Some("after".to_owned()), cause, hint }
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
        for next in last.map_or(&[][..], |service| &service.after) {
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
