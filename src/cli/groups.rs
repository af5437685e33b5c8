//! The commands in the help, in groups by task.

use clap::Command;

use super::table::wrapped_to;

/// Each task, and its commands in the order of the help.
const GROUPS: [(&str, &[&str]); 7] = [
    ("Look", &["list", "status", "show", "is-active", "logs", "history", "events", "wait"]),
    ("Run", &["daemon", "start", "stop", "restart", "reload", "enable", "disable", "kill"]),
    ("Add and remove services", &["register", "unregister", "remove", "destroy"]),
    ("Change the version", &["upgrade", "installed", "rollback", "cancel"]),
    ("Stored versions", &["versions", "pin", "gc"]),
    ("Write service files and try programs", &["check", "doctor", "crash-test"]),
    ("Set up", &["install", "completions", "man", "help"]),
];

/// Commands that are in no group come last.
const REST: &str = "Other commands";

/// The width of a line.
const WIDTH: usize = 80;
/// The width of the column of names.
const NAMES: usize = 13;

/// Gives the command a help that lists its commands in groups.
pub(super) fn grouped(command: Command) -> Command {
    let lists = lists(&command);
    // The parser's own list of commands would come beside this one.
    let command =
        command.mut_subcommands(|verb| verb.hide(true)).override_usage("handoff [OPTIONS] <COMMAND>");
    command.help_template(format!(
        "{{before-help}}{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{lists}{{all-args}}{{after-help}}"
    ))
}

fn lists(command: &Command) -> String {
    let listed = |name: &str| GROUPS.iter().any(|(_, verbs)| verbs.contains(&name));
    let rest: Vec<&str> =
        command.get_subcommands().map(Command::get_name).filter(|name| !listed(name)).collect();
    let groups = GROUPS.iter().map(|(title, verbs)| (*title, verbs.to_vec())).chain([(REST, rest)]);
    let mut text = String::new();
    for (title, verbs) in groups {
        let lines: Vec<String> = verbs.iter().filter_map(|verb| line(command, verb)).collect();
        if !lines.is_empty() {
            text += &format!("{title}:\n{}\n", lines.concat());
        }
    }
    text
}

/// The line of one command, with its other names.
fn line(command: &Command, verb: &str) -> Option<String> {
    // The parser adds `help` later.
    if verb == "help" {
        return Some(entry(verb, "Print this, or the help of a command"));
    }
    let found = command.get_subcommands().find(|found| found.get_name() == verb)?;
    let about = found.get_about().map(ToString::to_string).unwrap_or_default();
    let others: Vec<&str> = found.get_visible_aliases().collect();
    let others = if others.is_empty() { String::new() } else { format!(" [also: {}]", others.join(", ")) };
    Some(entry(verb, &format!("{about}{others}")))
}

fn entry(verb: &str, about: &str) -> String {
    wrapped_to(&format!("  {verb:<NAMES$}{about}"), NAMES + 2, WIDTH) + "\n"
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn each_command_is_in_one_group_and_each_line_fits() {
        let command = Cli::command();
        let text = lists(&command);
        assert!(!text.contains(REST), "a command is in no group: {text}");
        for verb in command.get_subcommands().map(Command::get_name).chain(["help"]) {
            assert_eq!(text.matches(&format!("\n  {verb} ")).count(), 1, "{verb}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for (_, verbs) in GROUPS {
            assert!(verbs.iter().all(|verb| verb.len() < NAMES), "{verbs:?}");
        }
    }
}
