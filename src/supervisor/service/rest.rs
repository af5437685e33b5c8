//! A service whose program has ended, and is not started again.

use handoff_protocol::reason::Exit;
use handoff_protocol::record::Fact;
use handoff_protocol::restart::{Rest, When};
use tokio::task::spawn_local;

use super::Service;
use crate::config::format_duration_ms;
use crate::hooks;
use crate::sys::process;

impl Service {
    /// The machine does not start the service again.
    pub(in crate::supervisor) fn comes_to_rest(&mut self, rest: Rest, exit: Option<Exit>) {
        let cause = self.problem_text();
        self.note(Fact::Rest { rest, exit });
        match rest {
            Rest::Exited => {
                tracing::info!("the program has done what it should");
                self.problems.exited();
            }
            Rest::Failed => {
                let text = self.rest_text();
                self.problems.not_started_again(text.clone());
                let all = cause.into_iter().chain([text]).collect::<Vec<_>>().join(" ");
                tracing::error!("{all}");
                self.run_failure_command(&all);
            }
        }
    }

    /// Why the service is not started again. Sentences.
    pub(super) fn rest_text(&self) -> String {
        let restart = &self.config.restart;
        let died = matches!(self.journal.standing().rest, Some((_, Some(_))));
        let why = match restart.when {
            When::Never if died => {
                "It is not started again, as its service file says (restart = \"never\")".to_owned()
            }
            _ => format!(
                "It has ended or failed to start {} times within {}, so it is not started again",
                restart.budget,
                format_duration_ms(restart.within_ms)
            ),
        };
        format!(
            "{why}. When the cause is gone: handoff start {0}. To run another version: handoff installed {0} PATH, then handoff \
             start {0}.",
            self.name
        )
    }

    /// How the last process that served has ended, as far as this daemon knows.
    pub(in crate::supervisor) fn last_exit(&self) -> Option<process::Exit> {
        let rest = self.journal.standing().rest.and_then(|(_, exit)| exit);
        match self.last_exit.or(rest)? {
            Exit::Code(code) => Some(process::Exit { code: Some(code), signal: None }),
            Exit::Signal(signal) => Some(process::Exit { code: None, signal: Some(signal) }),
            Exit::Unknown => None,
        }
    }

    /// Whether the program has done what it should, and is not started again.
    pub(in crate::supervisor) fn is_exited(&self) -> bool {
        matches!(self.journal.standing().rest, Some((Rest::Exited, _)))
    }

    /// Whether the service has failed, and is not started again.
    pub(in crate::supervisor) fn has_failed(&self) -> bool {
        matches!(self.journal.standing().rest, Some((Rest::Failed, _)))
    }

    /// Runs `on_failed`, if there is such a command. Nothing waits for it.
    fn run_failure_command(&self, cause: &str) {
        let Some(command) = self.config.hooks.on_failed.clone() else { return };
        let variables = [
            ("HANDOFF_SERVICE".to_owned(), self.name.to_string()),
            ("HANDOFF_GENERATION".to_owned(), self.journal.standing().generation().to_string()),
            ("HANDOFF_CAUSE".to_owned(), cause.to_owned()),
        ];
        let (service, directory) = (self.name.clone(), self.config.working_dir.clone());
        spawn_local(async move {
            if let Err(error) = hooks::run(&command, None, &variables, &directory).await {
                tracing::warn!(%service, %error, "the command on_failed failed");
            }
        });
    }
}
