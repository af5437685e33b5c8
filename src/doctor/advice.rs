//! What to do with what was found. A table and some words, without effects.

use super::{Choice, Diagnosis, Finding, Looks, Verdict};
use crate::config::{Adapter, DrainFor, Service};
use crate::shim::trial::{Stopped, Tried};

/// Puts it all together.
pub(super) fn diagnosis(
    service: &Service,
    choice: &Choice,
    looks: Looks,
    adapters: [Finding; 3],
    own_network: Option<bool>,
) -> Diagnosis {
    let advised = advised(service.adapter, &adapters);
    let mut remarks = looks.remarks;
    if let Some(tried) = advised.and_then(|adapter| tried(&adapters, adapter)) {
        remarks.extend(of_program(service, tried));
    }
    Diagnosis {
        service: service.name.to_string(),
        binary: choice.binary.clone(),
        kind: looks.kind,
        configured: service.adapter,
        advice: sentence(service, advised, &adapters),
        adapters: adapters.into(),
        own_network,
        remarks,
        advised,
    }
}

/// The one of the service file if that works; else the first that does.
fn advised(configured: Adapter, adapters: &[Finding]) -> Option<Adapter> {
    let works = |it: &&Finding| it.verdict == Verdict::Works;
    let own = adapters.iter().filter(works).find(|it| it.adapter == configured);
    own.or_else(|| adapters.iter().find(works)).map(|it| it.adapter)
}

fn tried(adapters: &[Finding], adapter: Adapter) -> Option<&Tried> {
    adapters.iter().find(|it| it.adapter == adapter)?.tried.as_ref()
}

fn sentence(service: &Service, advised: Option<Adapter>, adapters: &[Finding]) -> String {
    let file = service.file.display();
    let Some(adapter) = advised else {
        let open = adapters.iter().any(|it| it.verdict == Verdict::NotTried);
        return match open {
            true => "Nothing is known yet of an adapter that works: make the trial possible.".to_owned(),
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
        sentence.push_str("; put notify = true there too, for the program says when it is ready");
    }
    let better = adapters.iter().find(|it| it.verdict == Verdict::Works && it.adapter != adapter);
    if let Some(better) =
        better.filter(|better| adapter == Adapter::Inject && better.adapter == Adapter::ListenFds)
    {
        sentence
            .push_str(&format!("; {:?} works too, and needs no seccomp filter", better.adapter.spelling()));
    }
    sentence + "."
}

/// What speaks against it, or is to be known.
fn of_program(service: &Service, tried: &Tried) -> Vec<String> {
    let mut remarks: Vec<String> = tried
        .others
        .iter()
        .map(|other| format!("{other}; the kernel carries that out, so two generations may collide there"))
        .collect();
    if service.program.notify.is_some() && !tried.says_ready {
        remarks.push("the service file has the key notify, but it did not say READY=1".to_owned());
    }
    remarks.extend(tried.stopped.as_ref().and_then(|stopped| of_end(service, stopped)));
    remarks
}

fn of_end(service: &Service, stopped: &Stopped) -> Option<String> {
    let signal = service.program.stop_signal;
    let name = serde_json::to_value(signal).ok()?.as_str()?.to_owned();
    let exit = stopped.exit?;
    let after = std::time::Duration::from_millis(stopped.after.as_millis() as u64);
    Some(match (stopped.killed, exit.signal, exit.code) {
        (true, ..) => format!(
            "{name} did not end it within {after:?}, so it was killed: each upgrade would wait as long; find its stop_signal"
        ),
        (false, Some(number), _) if number == signal.signal().as_raw() => format!(
            "{name} ends it at once, whatever it is doing: do not set drain = \"nothing\"{}",
            if service.program.drain == DrainFor::Nothing { ", as the service file does" } else { "" }
        ),
        (false, Some(number), _) => format!("after {name} it was ended by signal {number}"),
        (false, None, Some(0)) => format!("{name} ends it in order, within {after:?}"),
        (false, None, code) => {
            format!("after {name} it exits with code {}, within {after:?}", code.unwrap_or_default())
        }
    })
}
