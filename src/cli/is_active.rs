//! `handoff is-active`.

use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, note};
use super::selection::{self, Wanted};
use super::{Json, ask};
use crate::config::Dirs;
use crate::control::api::{Request, Response, State};
use crate::control::{ClientError, Kind};

const EXAMPLES: &str = "\
Examples:
  handoff is-active s3
  if handoff is-active -q s3; then echo it serves; fi

The exit code is 0 if at least one of the services serves, 3 if none does, and
4 if none does and one of them does not exist.";

/// Check whether a service serves, by the exit code
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The services: names, or patterns such as 'web-*'
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<Wanted>,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let mut states: Vec<Option<State>> = Vec::new();
    for service in selection::resolve(&arguments.services, dirs)? {
        let state = match ask(dirs, &Request::Status(service.clone())) {
            Ok(Response::Status(status)) => Some(status.state),
            Ok(other) => unreachable!("the client reads only a status as the answer to status: {other:?}"),
            Err(ClientError::Refused(error)) if error.kind == Kind::UnknownService => {
                if !arguments.quiet && !out.is_json() {
                    note(error);
                }
                None
            }
            Err(error) => return Err(error.into()),
        };
        let word = state.map_or("unknown", State::as_str);
        match (arguments.quiet, out.is_json()) {
            (true, _) => {}
            (false, true) => out.object(
                &json!({ "service": service, "state": word, "active": state.is_some_and(is_active) }),
            ),
            (false, false) => out.line(word),
        }
        states.push(state);
    }
    Ok(exit_of(&states))
}

/// Whether a service in this state answers its clients, or its job runs.
fn is_active(state: State) -> bool {
    matches!(state, State::Serving | State::Upgrading | State::Running)
}

/// The exit code, as that of systemctl. `None` stands for a service that does not exist.
fn exit_of(states: &[Option<State>]) -> Exit {
    match states {
        _ if states.iter().flatten().any(|state| is_active(*state)) => Exit::Done,
        _ if states.contains(&None) => Exit::NoSuchService,
        _ => Exit::NotActive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_systemctl() {
        let (serves, stopped, unknown) = (Some(State::Serving), Some(State::Stopped), None);
        let table: &[(&[Option<State>], u8)] = &[
            (&[serves], 0),
            (&[Some(State::Upgrading)], 0),
            (&[Some(State::Running)], 0),
            (&[stopped], 3),
            (&[Some(State::Failed)], 3),
            (&[Some(State::Starting)], 3),
            (&[unknown], 4),
            (&[stopped, serves], 0),
            (&[unknown, serves], 0),
            (&[stopped, unknown], 4),
            (&[stopped, stopped], 3),
        ];
        for (states, code) in table {
            assert_eq!(exit_of(states).code(), *code, "{states:?}");
        }
    }
}
