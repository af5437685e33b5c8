//! What went wrong with the processes of a service: how the last process that was to run ended, and why it could not
//! be started. The message is composed on request, to fit what the service is doing then.

/// What the service is doing, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum ServiceActivity {
    /// It serves.
    Serves,
    /// It does not serve, and is started, now or after a pause.
    Starts,
    /// It is not to run.
    Rests,
}

/// What went wrong since the last request that went well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::supervisor) struct ProcessFailures {
    /// A sentence without its full stop.
    death: Option<String>,
    /// A clause.
    failure: Option<String>,
    /// Why the serving process cannot be reached: a sentence without its full stop.
    mute: Option<String>,
}

impl ProcessFailures {
    /// A process that was to run has ended.
    pub(in crate::supervisor) fn died(&mut self, how: String) {
        *self = Self { death: Some(how), ..Self::default() };
    }

    /// The serving process cannot be reached any more.
    pub(in crate::supervisor) fn mute(&mut self, why: String) {
        self.mute = Some(why);
    }

    /// A handoff has failed. The last reason counts.
    pub(in crate::supervisor) fn failed(&mut self, why: String) {
        self.failure = Some(why);
    }

    /// A process serves.
    pub(in crate::supervisor) fn serves(&mut self) {
        self.failure = None;
    }

    /// Why the last handoff failed, until a process serves.
    pub(in crate::supervisor) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// One or two sentences for users.
    pub(in crate::supervisor) fn text(&self, activity: ServiceActivity) -> Option<String> {
        let mute =
            self.mute.as_ref().filter(|_| activity == ServiceActivity::Serves).map(|why| format!("{why}."));
        let text = [mute, self.ends_text(activity)].into_iter().flatten().collect::<Vec<_>>().join(" ");
        (!text.is_empty()).then_some(text)
    }

    fn ends_text(&self, activity: ServiceActivity) -> Option<String> {
        match (activity, &self.death, &self.failure) {
            (_, None, None) | (ServiceActivity::Serves, None, Some(_)) => None,
            (ServiceActivity::Serves, Some(death), _) => Some(format!("{death}; it was started again.")),
            (ServiceActivity::Starts, Some(death), None) => Some(format!("{death}; it is started again.")),
            (ServiceActivity::Starts, None, Some(why)) => {
                Some(format!("It could not be started: {why}; it is tried again."))
            }
            (ServiceActivity::Starts, Some(death), Some(why)) => {
                Some(format!("{death}. It could not be started again: {why}; it is tried again."))
            }
            (ServiceActivity::Rests, Some(death), None) => Some(format!("{death}.")),
            (ServiceActivity::Rests, None, Some(why)) => Some(format!("It could not be started: {why}.")),
            (ServiceActivity::Rests, Some(death), Some(why)) => {
                Some(format!("{death}. It could not be started again: {why}."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ServiceActivity::{Rests, Serves, Starts};

    #[test]
    fn the_words_fit_what_the_service_is_doing() {
        let mut trouble = ProcessFailures::default();
        for activity in [Serves, Starts, Rests] {
            assert_eq!(trouble.text(activity), None);
        }
        trouble.failed("no such file".into());
        assert_eq!(
            trouble.text(Starts).unwrap(),
            "It could not be started: no such file; it is tried again."
        );
        assert_eq!(trouble.text(Serves), None, "beside a process that serves it is the outcome that tells");
        trouble.died("The process 7 was killed by signal 9".into());
        let text = |trouble: &ProcessFailures, activity| trouble.text(activity).unwrap();
        assert_eq!(text(&trouble, Starts), "The process 7 was killed by signal 9; it is started again.");
        trouble.failed("no such file".into());
        let both = "The process 7 was killed by signal 9. It could not be started again: no such file";
        assert_eq!(text(&trouble, Starts), format!("{both}; it is tried again."));
        assert_eq!(text(&trouble, Rests), format!("{both}."));
        trouble.serves();
        assert_eq!(text(&trouble, Serves), "The process 7 was killed by signal 9; it was started again.");
        trouble.mute("The process 8 can be told nothing any more".into());
        assert!(
            text(&trouble, Serves).starts_with("The process 8 can be told nothing any more. The process 7")
        );
        assert!(!text(&trouble, Starts).contains("nothing any more"));
        trouble.died("The process 8 exited with code 1".into());
        assert_eq!(text(&trouble, Serves), "The process 8 exited with code 1; it was started again.");
        assert_eq!(text(&trouble, Starts), "The process 8 exited with code 1; it is started again.");
    }
}
