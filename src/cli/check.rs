//! `handoff check`.

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::Json;
use super::exit::{Exit, Failure, services_with_files};
use super::output::{Output, Style, one_line};
use crate::config::{self, Dirs, Service};
use crate::control;

const EXAMPLES: &str = "\
Examples:
  handoff check       check all service files
  handoff check s3    check one

Mistakes are printed as file:line:column: key: cause; remedy. The exit code is
3 if there are any.";

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
        if file.symlink_metadata().is_err() {
            return Err(control::Error::no_service_file(service, &file, &services_with_files(dirs)).into());
        }
        loaded.services.retain(|name, _| name == service);
        loaded.errors.retain(|error| error.file == file);
    }
    let mut good: Vec<&Service> = Vec::new();
    let mut errors = loaded.errors;
    for service in loaded.services.values() {
        let mut mistakes = service.check_files();
        if mistakes.is_empty() {
            mistakes.extend(check_copy(service, dirs));
        }
        match mistakes.is_empty() {
            true => good.push(service),
            false => errors.extend(mistakes),
        }
    }
    errors.sort_by(|a, b| (&a.file, a.at).cmp(&(&b.file, b.at)));
    report(&good, &errors, dirs, out);
    Ok(if errors.is_empty() { Exit::Done } else { Exit::ConfigInvalid })
}

/// Mistakes that appear only when the program is copied, as the daemon does: the member of an archive, libraries next
/// to it, a place where nothing can be executed.
fn check_copy(service: &Service, dirs: &Dirs) -> Option<config::Error> {
    let (cause, hint) = crate::doctor::check_copy(service, &dirs.versions(&service.name)).err()?;
    let (file, key) = (service.file.clone(), Some("binary".to_owned()));
    Some(config::Error { file, at: Some(service.binary_at), key, cause, hint })
}

fn report(good: &[&Service], errors: &[config::Error], dirs: &Dirs, out: &mut Output) {
    if out.is_json() {
        let names: Vec<&ServiceName> = good.iter().map(|service| &service.name).collect();
        return out.object(&json!({"valid": names, "errors": errors}));
    }
    let style = Style::of_stdout();
    for service in good {
        out.line(one_line(&format!("{}: {}", service.file.display(), style.green("ok"))));
    }
    for error in errors {
        out.line(one_line(&error.to_string()));
    }
    if good.is_empty() && errors.is_empty() {
        out.line(format!("There are no service files in {}.", dirs.config.join("services").display()));
    }
}
