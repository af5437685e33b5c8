//! `handoff doctor`.

use std::path::PathBuf;
use std::time::Duration;

use handoff_protocol::ids::ServiceName;

use super::exit::{Exit, Failure, services_with_files};
use super::human::spaced;
use super::output::{Output, Style, note, one_line};
use super::table::{self, wrapped};
use super::{Json, ask, names};
use crate::config::{self, Dirs, Mode, Service, parse_duration_word_ms};
use crate::control;
use crate::control::api::{Request, Response};
use crate::doctor::{Compatibility, Diagnosis, Finding, Settings, examine};

const EXAMPLES: &str = "\
Examples:
  handoff doctor mcp
      which adapter can it use, and why?
  handoff doctor mcp --binary ./mcp-2.2
      the same for another version
  handoff doctor mcp --timeout 1m
      for a program that starts slowly
  handoff doctor mcp --request 'PING\\r\\n'
      what happens to this request at the stop signal?
  handoff doctor mcp --json | jq -r .advised

It starts the program three times, once for each adapter, with the arguments,
the environment and the working directory of the service, in its own network
where that is permitted. Then it ends the program and all its descendants. It
runs a copy next to the versions of the service, as the daemon would make it
(not with store = false). It sends the stop signal during a request, to see
whether the program finishes it. The program uses its data as usual: in
exclusive mode it is started only while the service does not run. The exit
code is 0 if the adapter of the service file works.";

/// Find out which adapter a program can use, by trying it out next to the service
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    #[arg(value_parser = names::service)]
    service: ServiceName,
    /// The program to try [default: the binary of the service file]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Time limit of each trial
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_word_ms, default_value = "10s")]
    timeout: u64,
    /// In exclusive mode, run the program even if the service may be running on the same data
    #[arg(long)]
    yes_run_it: bool,
    /// What to send, to see a request under way at the stop signal; \r, \n and \\ are understood [default: GET / over
    /// HTTP]
    #[arg(long, value_name = "TEXT")]
    request: Option<String>,
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
    let settings = Settings {
        binary: binary.unwrap_or_else(|| service.binary.clone()),
        limit: Duration::from_millis(arguments.timeout),
        versions: dirs.versions(&service.name),
        request: arguments.request.as_deref().map(bytes_of),
        run_anyway: arguments.yes_run_it,
        daemon_says: ask_daemon(&service, dirs),
    };
    let diagnosis = examine(&service, &settings);
    match out.is_json() {
        true => out.object(&diagnosis),
        false => report(&diagnosis, out),
    }
    Ok(if diagnosis.is_good() { Exit::Done } else { Exit::Failed })
}

fn load(name: &ServiceName, dirs: &Dirs) -> Result<Service, Failure> {
    let file = dirs.service_file(name);
    if !file.exists() {
        return Err(control::Error::no_service_file(name, &file, &services_with_files(dirs)).into());
    }
    config::load_service(&dirs.config, name).map_err(|errors| {
        let message = errors.iter().map(|error| one_line(&error.to_string())).collect::<Vec<_>>().join("\n");
        let hint = format!("Correct the service file; `handoff check {name}` checks it again.");
        Failure::Own { kind: "config_invalid", message, hint, exit: Exit::ConfigInvalid }
    })
}

/// The bytes of a text in which characters that are hard to type are written as in C.
fn bytes_of(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.chars());
    while let Some(character) = rest.next() {
        let written = match character {
            '\\' => match rest.next() {
                Some('r') => '\r',
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        };
        bytes.extend(written.encode_utf8(&mut [0; 4]).bytes());
    }
    bytes
}

/// Whether the service runs, or may be started at any time. `None` if no daemon answers.
fn ask_daemon(service: &Service, dirs: &Dirs) -> Option<bool> {
    match ask(dirs, &Request::Status(service.name.clone())) {
        Ok(Response::Status(status)) => Some(!status.state.is_at_rest()),
        _ => None,
    }
}

fn report(diagnosis: &Diagnosis, out: &mut Output) {
    let Diagnosis { binary, kind, .. } = diagnosis;
    match kind.as_str() {
        "" => out.line(one_line(&binary.display().to_string())),
        kind => out.line(one_line(&format!("{}: {kind}", binary.display()))),
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
        out.line(wrapped(&spaced(&one_line(&format!("Note: {remark}."))), 2));
    }
    out.line(wrapped(&Style::of_stdout().bold(&spaced(&one_line(&diagnosis.advice))), 0));
}

fn table(findings: &[Finding]) -> String {
    let rows = findings.iter().map(|finding| {
        let verdict = match finding.verdict {
            Compatibility::Works => "works",
            Compatibility::DoesNot => "does not",
            Compatibility::NotTried => "not tried",
        };
        [finding.adapter.spelling().to_owned(), verdict.to_owned(), spaced(&finding.why)]
    });
    table::table(["ADAPTER", "ANSWER", "WHY"], rows, table::Wide::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hard_to_type_is_written_as_in_c() {
        assert_eq!(bytes_of(r"PING\r\n"), b"PING\r\n");
        assert_eq!(bytes_of(r"a\\nb\x\"), br"a\nbx\".to_vec());
        assert_eq!(bytes_of(""), b"");
    }
}
