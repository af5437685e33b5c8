//! `handoff list`.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::json;

use super::exit::{Exit, Failure};
use super::output::{Output, one_line};
use super::table::{self, Wide, wrapped};
use super::{Json, ask, human, stale};
use crate::config::{self, Dirs};
use crate::control::api::{FileChange, Request, Response, ServiceStatus, Skew, State};
use crate::sys::process;

/// Time limit for the directory of the service files.
const TIMEOUT: Duration = Duration::from_secs(1);

/// List the services
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  handoff list\n  handoff list --json | jq -r '.services[].service'")]
pub(super) struct Arguments {
    #[command(flatten)]
    wide: Wide,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let services = match services(dirs) {
        Ok(services) => services,
        Err(failure) => return stale::list(failure, Some(arguments.wide), dirs, out),
    };
    let misnamed = misnamed(dirs);
    if out.is_json() {
        out.object(&json!({ "services": services, "errors": misnamed }));
        return Ok(Exit::Done);
    }
    if services.is_empty() {
        out.line(none(dirs));
    } else {
        out.line(table(&services, arguments.wide));
        for (status, problem) in
            services.iter().filter_map(|status| status.problem.as_ref().map(|it| (status, it)))
        {
            out.line(wrapped(&format!("{}: {}", status.service, one_line(problem)), 2));
        }
        for status in &services {
            if let Some(changed) = changed_file(status) {
                out.line(wrapped(&one_line(&format!("{}: {changed}", status.service)), 2));
            }
        }
    }
    print_mistakes(&misnamed, out);
    Ok(Exit::Done)
}

/// That its service file says something else, as a sentence. Other marks of the file are problems.
pub(super) fn changed_file(status: &ServiceStatus) -> Option<String> {
    let file = status.file.as_ref().filter(|file| file.is == FileChange::Changed)?;
    let apply = if file.cost.stops() { "handoff reload --allow-stop" } else { "handoff reload" };
    let keys = file.keys.join(", ");
    Some(format!("Its service file has changed ({keys}; cost: {}). To apply it: {apply}", file.cost.as_str()))
}

/// What is said in place of a list without services.
pub(super) fn none(dirs: &Dirs) -> String {
    let directory = dirs.config.join("services");
    one_line(&format!(
        "The daemon has no services. Their files belong in {}, unless the daemon was started with another --config-dir.",
        directory.display()
    ))
}

/// The files in the directory of the service files that the daemon does not read, because their names are not service
/// names; or why the directory cannot be listed. Waits at most [`TIMEOUT`].
pub(super) fn misnamed(dirs: &Dirs) -> Vec<config::Error> {
    let (config_dir, (sender, receiver)) = (dirs.config.clone(), channel());
    std::thread::spawn(move || {
        let misnamed =
            |files: Vec<PathBuf>| files.iter().filter_map(|file| config::name_of(file).err()).collect();
        let found = config::service_files(&config_dir).map_or_else(|error| vec![error], misnamed);
        // The receiver is gone if the directory has not answered in time.
        let _ = sender.send(found);
    });
    receiver.recv_timeout(TIMEOUT).unwrap_or_else(|_| {
        vec![config::Error {
            file: dirs.config.join("services"),
            at: None,
            key: None,
            cause: format!("has not answered for {} s", TIMEOUT.as_secs()),
            hint: "check its file system".to_owned(),
        }]
    })
}

/// Prints the mistakes below the services.
pub(super) fn print_mistakes(misnamed: &[config::Error], out: &mut Output) {
    for error in misnamed {
        out.line(wrapped(&one_line(&error.to_string()), 2));
    }
}

/// All services, as the daemon reports them.
pub(super) fn services(dirs: &Dirs) -> Result<Vec<ServiceStatus>, Failure> {
    match ask(dirs, &Request::List)? {
        Response::List(services) => Ok(services),
        other => unreachable!("the client reads only a list as the answer to list: {other:?}"),
    }
}

pub(super) fn table(services: &[ServiceStatus], wide: Wide) -> String {
    let rows = services.iter().map(|status| {
        let listens: Vec<&str> = status.listeners.iter().map(|listener| listener.address.as_str()).collect();
        [
            status.service.to_string(),
            state(status),
            status.generation.to_string(),
            status.pid.map_or_else(String::new, |pid| pid.to_string()),
            status.started_at.map_or_else(String::new, human::since),
            listens.join(" "),
            format!("{}{}", status.binary.display(), skew(status.skew)),
        ]
    });
    table::table(["SERVICE", "STATE", "GENERATION", "PID", "UP", "LISTENS", "BINARY"], rows, wide)
}

/// The state, with the exit code or signal of a service that is not started again.
fn state(status: &ServiceStatus) -> String {
    let state = status.state.as_str();
    let exit = status.last_exit.filter(|_| matches!(status.state, State::Exited | State::Failed));
    match exit {
        Some(process::Exit { code: Some(code), .. }) => format!("{state} ({code})"),
        Some(process::Exit { signal: Some(signal), .. }) => format!("{state} (signal {signal})"),
        Some(process::Exit { code: None, signal: None }) | None => state.to_owned(),
    }
}

/// The state of the file at the path.
fn skew(skew: Option<Skew>) -> &'static str {
    match skew {
        None => "",
        Some(Skew::Changed) => " (changed since)",
        Some(Skew::Gone) => " (gone)",
        Some(Skew::Deleted) => " (deleted)",
    }
}
