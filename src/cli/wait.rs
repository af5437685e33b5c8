//! `handoff wait`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::Json;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::selection::{self, Wanted};
use crate::config::{Dirs, format_duration_ms, parse_duration_word_ms};
use crate::control::Client;
use crate::control::api::{Change, State, Subscribe};

const EXAMPLES: &str = "\
Examples:
  handoff wait s3                       until it serves
  handoff wait s3 mcp --timeout 5m      until both serve at the same time
  handoff wait job --for exited

The exit code is 0 if all services are in the state, and 1 if they are not
within the time.";

/// Wait until services are in a state
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The services: names, or patterns such as 'web-*'
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<Wanted>,
    /// The state
    #[arg(long = "for", value_name = "STATE", value_enum, default_value = "serving")]
    wanted: WantedState,
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_word_ms, default_value = "1m")]
    timeout: u64,
    #[command(flatten)]
    pub(super) json: Json,
}

/// A state for which it makes sense to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WantedState {
    /// It serves, also during an upgrade
    Serving,
    /// It was stopped
    Stopped,
    /// Its program has done what it should
    Exited,
    /// It is not started again, since it failed
    Failed,
    /// None of its processes runs, and none follows by itself
    Down,
}

impl WantedState {
    fn fits(self, state: State) -> bool {
        match self {
            WantedState::Serving => matches!(state, State::Serving | State::Upgrading),
            WantedState::Stopped => state == State::Stopped,
            WantedState::Exited => state == State::Exited,
            WantedState::Failed => state == State::Failed,
            WantedState::Down => state.is_at_rest(),
        }
    }

    fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let until = Instant::now() + Duration::from_millis(arguments.timeout);
    let services = selection::resolve(&arguments.services, dirs)?;
    // After a loss of messages, the states are asked for again.
    loop {
        let states = follow(arguments.wanted, &services, until, dirs)?;
        if states.values().all(|change| arguments.wanted.fits(change.state)) {
            print(&states, out);
            return Ok(Exit::Done);
        }
        if Instant::now() >= until {
            return Err(timed_out(arguments, &states));
        }
    }
}

/// Follows the services until all are in the state, the time is over, or messages were lost.
fn follow(
    wanted: WantedState,
    services: &[ServiceName],
    until: Instant,
    dirs: &Dirs,
) -> Result<BTreeMap<ServiceName, Change>, Failure> {
    let mut client = Client::connect(&dirs.control_socket())?;
    let subscription = client.subscribe(&Subscribe { services: services.to_vec() })?;
    let mut states: BTreeMap<ServiceName, Change> =
        subscription.states.into_iter().map(|change| (change.service.clone(), change)).collect();
    while !states.values().all(|change| wanted.fits(change.state)) {
        let left = until.saturating_duration_since(Instant::now());
        let Some(notice) = client.next_notice(Some(left))? else { break };
        if notice.lost > 0 {
            break;
        }
        states.extend(notice.event.map(|change| (change.service.clone(), change)));
    }
    Ok(states)
}

fn print(states: &BTreeMap<ServiceName, Change>, out: &mut Output) {
    for change in states.values() {
        match out.is_json() {
            true => out.object(&json!({ "event": change })),
            false => out.line(format!("{}: {}", change.service, change.state.as_str())),
        }
    }
}

fn timed_out(arguments: &Arguments, states: &BTreeMap<ServiceName, Change>) -> Failure {
    let late = states.values().filter(|change| !arguments.wanted.fits(change.state));
    let late: Vec<String> =
        late.map(|change| format!("{} is {}", change.service, change.state.as_str())).collect();
    let (time, wanted) = (format_duration_ms(arguments.timeout), arguments.wanted.word());
    let message = format!("Not all are {wanted} after {time}: {}.", late.join(", "));
    let hint = "`handoff status` says why; --timeout gives them longer.".to_owned();
    Failure::Own { kind: "timed_out", message, hint, exit: Exit::Failed }
}
