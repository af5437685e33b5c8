//! `handoff check`.

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::Json;
use super::exit::{Exit, Failure, known_services};
use super::output::{Output, Style};
use crate::config::{self, Dirs, Service};
use crate::control;

const EXAMPLES: &str = "\
Examples:
  handoff check       check every service file
  handoff check s3    check one

Mistakes are printed as file:line:column: key: cause; remedy. The exit code is 3 if there is any.";

/// Check the service files, without a daemon
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only this service
    service: Option<ServiceName>,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let mut loaded = config::load(&dirs.config);
    if let Some(service) = &arguments.service {
        let file = dirs.service_file(service);
        if !file.exists() {
            let known = known_services(dirs);
            return Err(control::Error::unknown_service(service, known.iter().map(String::as_str)).into());
        }
        loaded.services.retain(|name, _| name == service);
        loaded.errors.retain(|error| error.file == file);
    }
    let mut good: Vec<&Service> = Vec::new();
    let mut errors = loaded.errors;
    for service in loaded.services.values() {
        match service.check_files() {
            mistakes if mistakes.is_empty() => good.push(service),
            mistakes => errors.extend(mistakes),
        }
    }
    errors.sort_by(|a, b| (&a.file, a.at).cmp(&(&b.file, b.at)));
    report(&good, &errors, dirs, out);
    Ok(if errors.is_empty() { Exit::Done } else { Exit::ConfigInvalid })
}

fn report(good: &[&Service], errors: &[config::Error], dirs: &Dirs, out: &mut Output) {
    if out.is_json() {
        let names: Vec<&ServiceName> = good.iter().map(|service| &service.name).collect();
        return out.object(&json!({"valid": names, "errors": errors}));
    }
    let style = Style::of_stdout();
    for service in good {
        out.line(format!("{}: {}", service.file.display(), style.green("ok")));
    }
    for error in errors {
        out.line(error);
    }
    if good.is_empty() && errors.is_empty() {
        out.line(format!("There are no service files in {}.", dirs.config.join("services").display()));
    }
}
