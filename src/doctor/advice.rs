//! The advice for a diagnosis. It changes nothing.

use std::time::Duration;

use super::{Compatibility, Diagnosis, Finding, Inspection, Settings, others};
use crate::config::{Adapter, DrainCondition, Mode, Service, StopMode};
use crate::shim::trial::{RequestFate, StopReport, TrialReport, Wrapper};

/// Builds the diagnosis.
pub(super) fn diagnosis(
    service: &Service,
    settings: &Settings,
    inspection: Inspection,
    adapters: [Finding; 3],
    own_network: Option<bool>,
) -> Diagnosis {
    let advised = advised(service.adapter, &adapters);
    let mut remarks = inspection.remarks;
    if let Some(tried) = advised.and_then(|adapter| tried(&adapters, adapter)) {
        remarks.extend(of_program(service, tried));
    }
    Diagnosis {
        service: service.name.to_string(),
        binary: settings.binary.clone(),
        kind: inspection.kind,
        configured: service.adapter,
        advice: sentence(service, advised, &adapters),
        adapters: adapters.into(),
        own_network,
        remarks,
        advised,
    }
}

/// The adapter of the service file if it works, else the first one that works.
fn advised(configured: Adapter, adapters: &[Finding]) -> Option<Adapter> {
    let works = |it: &&Finding| it.verdict == Compatibility::Works;
    let own = adapters.iter().filter(works).find(|it| it.adapter == configured);
    own.or_else(|| adapters.iter().find(works)).map(|it| it.adapter)
}

fn tried(adapters: &[Finding], adapter: Adapter) -> Option<&TrialReport> {
    adapters.iter().find(|it| it.adapter == adapter)?.tried.as_ref()
}

fn sentence(service: &Service, advised: Option<Adapter>, adapters: &[Finding]) -> String {
    let file = service.file.display();
    let Some(adapter) = advised else {
        let open = adapters.iter().any(|it| it.verdict == Compatibility::NotTried);
        return match open {
            true => "No working adapter is known yet: make the trial possible.".to_owned(),
            false => {
                "No adapter works for this program as the service file starts it: see why, and try again."
                    .to_owned()
            }
        };
    };
    let mut sentence = format!("Use adapter = {:?}", adapter.spelling());
    if adapter == service.adapter {
        sentence.push_str(&format!(", as {file} says"));
    } else {
        sentence.push_str(&format!(" in {file}, which says {:?}", service.adapter.spelling()));
    }
    if tried(adapters, adapter).is_some_and(|tried| tried.says_ready) && service.program.notify.is_none() {
        sentence.push_str("; add notify = true there, because the program reports when it is ready");
    }
    let better = adapters.iter().find(|it| it.verdict == Compatibility::Works && it.adapter != adapter);
    if let Some(better) =
        better.filter(|better| adapter == Adapter::Inject && better.adapter == Adapter::ListenFds)
    {
        sentence
            .push_str(&format!("; {:?} works too, and needs no seccomp filter", better.adapter.spelling()));
    }
    sentence + "."
}

/// Problems of the program, and other remarks.
fn of_program(service: &Service, tried: &TrialReport) -> Vec<String> {
    let mut remarks = others::remarks(service, &tried.others);
    if service.program.notify.is_some() && !tried.says_ready {
        remarks.push("the service file has the key notify, but the program did not send READY=1".to_owned());
    }
    let Some(stopped) = &tried.stopped else { return remarks };
    remarks.extend(of_end(service, stopped));
    remarks.extend(of_wrapper(service.program.stop_mode, stopped));
    remarks.extend(of_drain(service, stopped));
    remarks.extend(stopped.deadly.iter().map(|key| {
        format!("the signal of {key} would end it: it neither catches nor ignores it; remove {key}, or name a signal that it handles")
    }));
    remarks
}

fn of_end(service: &Service, stopped: &StopReport) -> Option<String> {
    let signal = service.program.stop_signal;
    let name = serde_json::to_value(signal).ok()?.as_str()?.to_owned();
    let exit = stopped.exit?;
    let after = Duration::from_millis(stopped.after.as_millis() as u64);
    if stopped.killed {
        return Some(of_no_end(stopped, &name, after));
    }
    let by_signal = exit.signal == Some(signal.signal() as i32);
    let then = match (exit.signal, exit.code) {
        (Some(_), _) if by_signal => String::new(),
        (Some(number), _) => format!("; it was ended by signal {number}"),
        (None, Some(0)) => String::new(),
        (None, code) => format!("; it exits with code {}", code.unwrap_or_default()),
    };
    // Both rely on the program to finish its requests.
    let careful = match service.program.drain {
        DrainCondition::Nothing => {
            "do not set drain = \"nothing\", as the service file does, nor \"long-requests\""
        }
        DrainCondition::LongRequests => {
            "do not set drain = \"long-requests\", as the service file does, nor \"nothing\""
        }
        DrainCondition::Connections | DrainCondition::Requests => {
            "do not set drain = \"nothing\" or \"long-requests\""
        }
    };
    Some(match (stopped.request, stopped.catches) {
        (RequestFate::Answered, _) => {
            format!(
                "{name} ends it in order, within {after:?}: a request that was under way was answered{then}"
            )
        }
        (RequestFate::Cut, true) => {
            format!(
                "{name} ends it within {after:?}, and a request that was under way was cut: {careful}{then}"
            )
        }
        (RequestFate::Cut | RequestFate::NotSeen, false) => {
            format!("{name} ends it at once, whatever it is doing: {careful}{then}")
        }
        (RequestFate::NotSeen, true) => format!(
            "{name} ends it within {after:?}; what becomes of a request then could not be seen: give one that takes a \
             while by --request{then}"
        ),
    })
}

/// The processes between the stop signal and the server.
fn of_wrapper(mode: StopMode, stopped: &StopReport) -> Option<String> {
    let Wrapper { servers, swallows } = stopped.wrapper.as_ref()?;
    let (first, servers) = (&stopped.first, servers.join(" and "));
    let text =
        format!("{first}, which is started first, is not the server: {servers} is, which it has started");
    let remedy = "write stop_mode = \"mixed\", or start the server by exec";
    Some(match (mode, swallows) {
        (StopMode::Mixed, true) => format!(
            "{text}; {first} would swallow the stop signal, so keep stop_mode = \"mixed\", with which {servers} gets it"
        ),
        (StopMode::Mixed, false) => format!("{text}, and gets the stop signal (stop_mode = \"mixed\")"),
        (StopMode::Main, true) => format!(
            "{text}; with stop_mode = \"main\" {first} gets the stop signal and swallows it: {remedy}"
        ),
        (StopMode::Main, false) => format!(
            "{text}; with stop_mode = \"main\" {first} gets the stop signal, so {first} must pass it on: if it does not, {remedy}"
        ),
        (StopMode::Group, _) => {
            format!("{text}; with stop_mode = \"group\" both get the stop signal at once")
        }
    })
}

/// The wait before the stop signal, and the signal or command that informs the clients.
fn of_drain(service: &Service, stopped: &StopReport) -> Option<String> {
    let Service { program, hooks, mode, .. } = service;
    let is_told = program.drain_signal.is_some() || hooks.drain.is_some();
    match (stopped.request, program.drain) {
        (_, DrainCondition::Nothing) if is_told => Some(
            "drain_signal and drain_command have no time to work with drain = \"nothing\": write drain = \"long-requests\"".to_owned(),
        ),
        (RequestFate::Answered, DrainCondition::Requests) => Some(
            "as it finishes its requests, drain = \"long-requests\" makes upgrades quicker under clients that ask without a pause".to_owned(),
        ),
        (RequestFate::Cut, DrainCondition::Requests | DrainCondition::Connections)
            if !is_told && *mode == Mode::Overlap => Some(
            "if it can tell its clients to move on, write what makes it do so: drain_signal or drain_command".to_owned(),
        ),
        _ => None,
    }
}

/// The processes that did not end at the stop signal.
fn of_no_end(stopped: &StopReport, name: &str, after: Duration) -> String {
    let (first, left) = (&stopped.first, stopped.left.join(", "));
    match (stopped.first_left, left.is_empty()) {
        (false, false) => format!(
            "{first}, which is started first, ends at {name}, but {left}, which it has started, does not, and was killed after \
             {after:?}: start the server itself, or by exec, so that it gets the signal"
        ),
        (true, false) => format!(
            "{name} ended neither {first}, which is started first, nor {left} within {after:?}, so they were killed: if {first} does not \
             pass the signal on, start the server itself, or by exec; else find its stop_signal"
        ),
        (_, true) => format!(
            "{name} did not end it within {after:?}, so it was killed: each upgrade would wait as long; find its stop_signal"
        ),
    }
}
