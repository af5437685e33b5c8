//! `handoff check`.

use std::path::{Path, PathBuf};

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::claims::absolute;
use super::exit::{Exit, Failure, services_with_files};
use super::output::{Output, Style, one_line};
use super::{Json, names};
use crate::config::{self, DaemonSettings, Dirs, Loaded, Service};
use crate::control;

const EXAMPLES: &str = "\
Examples:
  handoff check              check all service files
  handoff check s3           check one
  handoff check ./s3.toml    check a file before you install it

Mistakes are printed as file:line:column: key: cause; remedy. The exit code is
3 if there are any.";

/// Check the service files, without a daemon
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Only this service, or this file: a path has a `/`, or ends with `.toml`
    #[arg(value_name = "SERVICE|FILE", value_parser = target)]
    target: Option<Target>,
    #[command(flatten)]
    pub(super) json: Json,
}

/// What is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Service(ServiceName),
    File(PathBuf),
}

fn target(text: &str) -> Result<Target, String> {
    match text.contains('/') || text.ends_with(".toml") {
        true => Ok(Target::File(text.into())),
        false => names::service(text).map(Target::Service),
    }
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let loaded = match &arguments.target {
        None => {
            let mut loaded = config::load(&dirs.config);
            loaded.errors.extend(daemon_mistakes(dirs));
            loaded
        }
        Some(Target::Service(service)) => {
            let file = dirs.service_file(service);
            if file.symlink_metadata().is_err() {
                return Err(
                    control::Error::no_service_file(service, &file, &services_with_files(dirs)).into()
                );
            }
            only(service, &file, dirs)
        }
        Some(Target::File(path)) => at(path, dirs)?,
    };
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

/// Mistakes in the settings of the daemon.
fn daemon_mistakes(dirs: &Dirs) -> Vec<config::Error> {
    match DaemonSettings::read(&dirs.config) {
        Ok(settings) => settings.groups().err().into_iter().collect(),
        Err(errors) => errors,
    }
}

/// One of the installed service files. The others may have its addresses.
fn only(service: &ServiceName, file: &Path, dirs: &Dirs) -> Loaded {
    let mut loaded = config::load(&dirs.config);
    loaded.services.retain(|name, _| name == service);
    loaded.errors.retain(|error| error.file == file);
    loaded
}

/// The file at a path, which need not be installed.
fn at(path: &Path, dirs: &Dirs) -> Result<Loaded, Failure> {
    let file = absolute(path)?;
    if let Err(error) = file.metadata() {
        let hint = "Check the path; `handoff check` checks all installed service files.";
        return Err(Failure::failed(format!("{} cannot be read: {error}.", file.display()), hint));
    }
    let is_installed = file.parent().and_then(|parent| parent.canonicalize().ok())
        == dirs.config.join("services").canonicalize().ok();
    match config::name_of(&file) {
        Ok(service) if is_installed => Ok(only(&service, &dirs.service_file(&service), dirs)),
        Ok(_) => {
            let read = config::read_service(&file).map(|service| *service).map_err(|(errors, _)| errors);
            Ok(config::judge(vec![read], |_| true))
        }
        Err(error) => Ok(Loaded { errors: vec![error], ..Loaded::default() }),
    }
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
        out.line(how_to_begin(dirs));
    }
}

/// What is said if there is no service file.
fn how_to_begin(dirs: &Dirs) -> String {
    let directory = one_line(&dirs.config.join("services").display().to_string());
    format!(
        "There are no service files in {directory}. To begin, write {directory}/web.toml:\n\n    binary = \"/opt/web/web\"\n\n    \
         [listen]\n    http = \"127.0.0.1:8080\"\n\nThen: `handoff check`, `handoff doctor web`, `handoff daemon`. The name of \
         the service is that of its file."
    )
}
