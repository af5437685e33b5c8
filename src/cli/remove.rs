//! `handoff remove`, and what `unregister` and `destroy` share with it.

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::exit::{Exit, Failure};
use super::interrupt::{ContinuationHint, Interrupt};
use super::output::{Output, note, one_line};
use super::selection::{Wanted, resolve};
use super::table::wrapped;
use super::{Json, operation};
use crate::config::Dirs;
use crate::control::Client;
use crate::control::api::{Removed, Request, Response};

const EXAMPLES: &str = "\
Examples:
  handoff remove web
  handoff remove 'test-*'

It stops the service and frees its addresses. The service file becomes
web.toml.removed, or is deleted if `handoff register` wrote it. The log, the
history and the versions stay; see `handoff destroy`.";

/// Stop a service and take its file away; its data stays
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The services: names, or patterns such as 'web-*'
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<Wanted>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    remove_all(&resolve(&arguments.services, dirs)?, Request::Remove, dirs, out)
}

/// Removes one service after the other. A failure does not stop the others; the exit code is that of the first
/// failure. A service that does not exist is no failure.
pub(super) fn remove_all(
    names: &[ServiceName],
    request: impl Fn(ServiceName) -> Request,
    dirs: &Dirs,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let watch = Interrupt::hold().print_on_interrupt(out.is_json(), None, ContinuationHint::removal);
    let mut exit = Exit::Done;
    for name in names {
        match remove(&request(name.clone()), dirs, out) {
            Ok(removed) => print(name, &removed, out),
            Err(failure) => {
                out.failure(&failure);
                exit = if exit == Exit::Done { failure.exit() } else { exit };
            }
        }
    }
    drop(watch);
    Ok(exit)
}

fn remove(request: &Request, dirs: &Dirs, out: &mut Output) -> Result<Removed, Failure> {
    let answer = Client::connect(&dirs.control_socket())?.call(request, &mut |progress| {
        if out.is_json() {
            out.object(&json!({ "progress": progress }));
        } else {
            note(operation::line(&progress));
        }
    });
    match answer? {
        Response::Removed(removed) => Ok(*removed),
        other => unreachable!("the client reads only a removal as the answer to {request:?}: {other:?}"),
    }
}

fn print(name: &ServiceName, removed: &Removed, out: &mut Output) {
    if out.is_json() {
        return out.object(&json!({ "removed": { "service": name, "result": removed } }));
    }
    for sentence in sentences(name, removed) {
        out.line(wrapped(&one_line(&sentence), 2));
    }
}

fn sentences(name: &ServiceName, removed: &Removed) -> Vec<String> {
    if !removed.was_there {
        return vec![format!("There is no service {name}: nothing was removed.")];
    }
    let stopped = if removed.stopped { "It was stopped. " } else { "" };
    let file = match &removed.kept {
        Some(kept) => format!("Its file is {} now.", kept.display()),
        None => "Its file is deleted.".to_owned(),
    };
    let mut said = vec![format!("{name} is removed. {stopped}{file}")];
    said.extend(removed.deleted.iter().map(|path| format!("Deleted: {}", path.display())));
    said.extend(
        removed
            .foreign
            .iter()
            .map(|path| format!("Left, because handoff did not write it: {}", path.display())),
    );
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_what_is_where() {
        let name: ServiceName = "web".parse().unwrap();
        assert!(sentences(&name, &Removed::default())[0].contains("nothing was removed"));
        let removed = Removed {
            was_there: true,
            stopped: true,
            kept: Some("/etc/web.toml.removed".into()),
            deleted: vec!["/var/web".into()],
            foreign: vec!["/var/web/mine".into()],
        };
        let said = sentences(&name, &removed);
        assert_eq!(said[0], "web is removed. It was stopped. Its file is /etc/web.toml.removed now.");
        assert!(said[1].ends_with("/var/web") && said[2].ends_with("/var/web/mine"), "{said:?}");
    }
}
