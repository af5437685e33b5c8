//! `handoff doctor`.

use std::path::PathBuf;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure, known_services};
use super::output::{Output, Style, note};
use super::{Json, ask};
use crate::config::{self, Dirs, Mode, Service, parse_duration_ms};
use crate::control;
use crate::control::api::{Request, Response, State};
use crate::doctor::{Choice, Diagnosis, Finding, Verdict, examine};

const EXAMPLES: &str = "\
Examples:
  handoff doctor mcp                        which adapter can it use, and why?
  handoff doctor mcp --binary ./mcp-2.2     the same of another version
  handoff doctor mcp --timeout 1m           of a program that takes long to start
  handoff doctor mcp --json | jq -r .advised

The program is started three times, once for each adapter, in a network of its own where that is
permitted, with the arguments, the environment and the working directory of the service, and ended
with all that it starts. It touches its data as ever: in exclusive mode it is started only while
the service does not run. The exit code is 0 if the adapter of the service file works.";

/// Find out which adapter a program can use, by trying it out beside the service
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    service: ServiceName,
    /// The program to try [default: the binary of the service file]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// How long each trial may take
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms, default_value = "10s")]
    timeout: u64,
    /// In exclusive mode, run the program although the service may be running on the same data
    #[arg(long)]
    yes_run_it: bool,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let service = load(&arguments.service, dirs)?;
    let binary = arguments.binary.as_ref().map(std::path::absolute).transpose();
    let binary = binary.map_err(|error| {
        let message = format!("The path of --binary cannot be made absolute: {error}.");
        Failure::failed(message, "Give an absolute path.")
    })?;
    if service.mode == Mode::Exclusive && arguments.yes_run_it {
        note("The program is run as it is: if the service runs too, both are on the same data.");
    }
    let choice = Choice {
        binary: binary.unwrap_or_else(|| service.binary.clone()),
        limit: Duration::from_millis(arguments.timeout),
        run_anyway: arguments.yes_run_it,
        daemon_says: ask_daemon(&service, dirs),
    };
    let diagnosis = examine(&service, &choice);
    match out.is_json() {
        true => out.object(&diagnosis),
        false => report(&diagnosis, out),
    }
    Ok(if diagnosis.is_good() { Exit::Done } else { Exit::Failed })
}

fn load(name: &ServiceName, dirs: &Dirs) -> Result<Service, Failure> {
    if !dirs.service_file(name).exists() {
        let known = known_services(dirs);
        return Err(control::Error::unknown_service(name, known.iter().map(String::as_str)).into());
    }
    config::load_service(&dirs.config, name).map_err(|errors| {
        let told = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let hint = format!("Correct the service file; `handoff check {name}` looks at it again.");
        Failure::Own { kind: "config_invalid", message: told, hint, exit: Exit::ConfigInvalid }
    })
}

/// Whether the service runs, or may be started at any time, if there is a daemon to ask.
fn ask_daemon(service: &Service, dirs: &Dirs) -> Option<bool> {
    match ask(dirs, &Request::Status(service.name.clone())) {
        Ok(Response::Status(status)) => Some(!matches!(status.state, State::Stopped | State::Failed)),
        _ => None,
    }
}

fn report(diagnosis: &Diagnosis, out: &mut Output) {
    let Diagnosis { binary, kind, .. } = diagnosis;
    match kind.as_str() {
        "" => out.line(binary.display()),
        kind => out.line(format!("{}: {kind}", binary.display())),
    }
    match diagnosis.own_network {
        Some(true) => out.line("Tried in a network of its own, from which nothing else can be reached."),
        Some(false) => out.line("Tried in the network of this machine, at addresses that were free."),
        None => {}
    }
    out.line("");
    out.line(table(&diagnosis.adapters));
    out.line("");
    for remark in &diagnosis.remarks {
        out.line(format!("Note: {remark}."));
    }
    out.line(Style::of_stdout().bold(&diagnosis.advice));
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["ADAPTER", "ANSWER", "WHY"]);
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Works => "works",
            Verdict::DoesNot => "does not",
            Verdict::NotTried => "not tried",
        };
        table.add_row([finding.adapter.spelling(), verdict, &finding.why]);
    }
    table.trim_fmt()
}
