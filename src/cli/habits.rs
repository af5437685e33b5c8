//! What people type who know systemctl, pm2, docker compose or kamal, and the command that does it here.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Command, CommandFactory};

use super::Cli;
use crate::config::nearest;

/// The words that are no commands here, and what to do. Each answer is a sentence without its end.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (&["up"], "run `handoff daemon`, or `handoff start --all` while it runs"),
    (&["down"], "run `handoff stop --all`; SIGTERM also ends the daemon"),
    (&["journal", "journalctl", "log", "tail"], "run `handoff logs web`"),
    (
        &["monit", "dash", "top", "stats", "watch"],
        "run `handoff list`, or `handoff events` to follow changes",
    ),
    (&["describe", "inspect", "info", "cat", "env", "config"], "run `handoff show web`"),
    (
        &["update", "redeploy", "reload-or-restart", "try-reload-or-restart", "replace"],
        "run `handoff upgrade web`",
    ),
    (&["push", "release", "publish"], "run `handoff deploy web ./path`"),
    (&["try-restart", "condrestart", "bounce"], "run `handoff restart web`"),
    (
        &["daemon-reload", "reread", "reconfigure"],
        "run `handoff reload`; with --dry-run it only shows what would change",
    ),
    (&["delete", "del", "rmi"], "run `handoff remove web`"),
    (&["create", "add", "new"], "write a service file, then run `handoff register ./web.toml`"),
    (
        &["mask", "unmask"],
        "run `handoff disable --now web`, which stops it and keeps it from starting with the daemon",
    ),
    (&["scale"], "a service is one program: write a service file for each copy, with a listener of its own"),
    (
        &["exec", "attach", "shell", "ssh"],
        "a service is a process of this machine: run the command itself; `handoff status web` has the pid",
    ),
    (
        &["save", "dump", "resurrect"],
        "nothing has to be saved: the daemon starts what its service files say, and what ran before",
    ),
    (
        &["startup", "unstartup", "setup", "bootstrap"],
        "run `handoff install --systemd`, which writes a unit for the daemon",
    ),
    (
        &["is-failed", "is-enabled", "is-running", "health", "ping"],
        "run `handoff is-active web`; `handoff status web --json` has the rest, such as autostart",
    ),
    (&["images", "releases", "tags"], "run `handoff versions web`"),
    (&["prune", "clean", "flush"], "run `handoff gc`, which removes old versions"),
    (&["signal", "sendsignal", "sendSignal"], "run `handoff kill --signal HUP web`"),
    (&["revert", "undo", "back"], "run `handoff rollback web`"),
    (&["validate", "verify", "lint", "test"], "run `handoff check`"),
    (&["pause", "unpause", "freeze", "thaw"], "a service cannot be paused; run `handoff stop web`"),
    (&["version"], "run `handoff --version`"),
    (&["serve", "server", "run", "supervise"], "run `handoff daemon`"),
    (
        &["isolate", "set-default", "list-dependencies"],
        "run `handoff list`; requires, wants and after in the service files order services",
    ),
    (&["build", "pull"], "build or download the program yourself, then run `handoff deploy web ./path`"),
    (&["history-log", "events-log", "audit", "activity"], "run `handoff history`"),
];

/// The answer to a word that is no command.
pub(super) fn answer_to(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    ELSEWHERE.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, answer)| *answer)
}

/// Replaces what the parser guesses about an unknown command: it knows only how words are spelt.
pub(super) fn suggest(mut error: Error) -> Error {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return error;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand).cloned() else {
        return error;
    };
    let command = Cli::command();
    if let Some(tip) = answer_to(&word).map(str::to_owned).or_else(|| slip(&word, &command)) {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    } else {
        error.remove(ContextKind::Suggested);
    }
    error.remove(ContextKind::SuggestedSubcommand);
    error
}

/// The command that is spelt much like `word`.
fn slip(word: &str, command: &Command) -> Option<String> {
    let names = command
        .get_subcommands()
        .flat_map(|verb| [verb.get_name()].into_iter().chain(verb.get_visible_aliases()));
    nearest(word, names).map(|near| format!("did you mean `handoff {near}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_names_a_command_that_exists_and_no_word_is_one() {
        let command = Cli::command();
        let exists = |word: &str| command.find_subcommand(word).is_some();
        for (words, answer) in ELSEWHERE {
            assert!(words.iter().all(|word| !exists(word)), "{words:?}");
            assert!(answer.chars().count() <= 120 && !answer.ends_with('.'), "{answer}");
            for verb in answer.split("`handoff ").skip(1).filter_map(|rest| rest.split([' ', '`']).next()) {
                assert!(exists(verb) || verb == "--version", "{answer}");
            }
        }
        let mut words: Vec<&str> = ELSEWHERE.iter().flat_map(|(words, _)| words.iter().copied()).collect();
        let all = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all, "a word has two answers");
    }

    #[test]
    fn a_habit_comes_before_the_spelling() {
        assert!(answer_to("cat").unwrap().contains("handoff show"), "not crash-test");
        assert_eq!(answer_to("Up"), answer_to("up"));
        let command = Cli::command();
        assert_eq!(slip("upgrad", &command).unwrap(), "did you mean `handoff upgrade`?");
        assert_eq!(slip("qqqqqq", &command), None);
    }
}
