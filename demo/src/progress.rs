//! Progress output during the demo: a bar on a terminal, otherwise one line per event.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows progress on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts the output for a run of about `length`.
    pub fn new(length: Duration) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos:>3}/{len} s  {msg}");
            let bar = ProgressBar::new(length.as_secs());
            bar.with_style(style.expect("the template is right"))
        });
        Self { bar }
    }

    /// Shows an event.
    pub fn event(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Updates the progress and the counts.
    pub fn tick(&self, elapsed: Duration, requests: u64, failures: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(elapsed.as_secs());
            bar.set_message(format!("{requests} requests, {failures} failures"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
