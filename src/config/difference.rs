//! The keys in which two versions of a service file differ, and what it costs to apply each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use handoff_protocol::ids::ServiceName;

use super::hooks::Hooks;
use super::kind::ServiceKind;
use super::listen::Listener;
use super::order::Dependency;
use super::process::ProcessSettings;
use super::program::ProgramSettings;
use super::service::Service;
use super::update::Update;
use crate::sys::attributes::Attributes;

/// What a running service pays for a change. Later ones cost more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cost {
    /// It counts at once, or from the next upgrade or start on.
    Nothing,
    /// The service is started.
    Start,
    /// A new process takes over, and no client notices.
    Handoff,
    /// The service is stopped and started: clients are refused meanwhile.
    Restart,
    /// The service is stopped.
    Stop,
}

impl Cost {
    /// Whether clients are refused.
    pub fn stops(self) -> bool {
        matches!(self, Self::Restart | Self::Stop)
    }

    /// The word in tables and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Start => "start",
            Self::Handoff => "handoff",
            Self::Restart => "restart",
            Self::Stop => "stop",
        }
    }
}

/// A key that differs, dotted if it is in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// What its change costs a running service.
    pub cost: Cost,
}

/// The keys in which `to` differs from `from`, in the order of the reference. Comments, places in the file and defaults
/// that are written out are no difference.
pub fn differences(from: &Service, to: &Service) -> Vec<Difference> {
    let mut found = Found(Vec::new());
    // Without `..`: a new field does not compile before it has a cost.
    let Service {
        name: _,
        file: _,
        text: _,
        binary_at: _,
        working_dir_at: _,
        probe_at: _,
        probation_at: _,
        binary,
        args,
        kind,
        adapter,
        channel,
        program,
        probe,
        hooks,
        watch,
        dependencies,
        trial,
        liveness,
        update,
        mode,
        working_dir,
        deadline_ms,
        drain_grace_ms,
        stragglers,
        lease_ms,
        stop_grace_ms,
        resume_limit_ms,
        answer_grace_ms,
        autostart,
        restart,
        env,
        env_files,
        env_inherit,
        credentials,
        process,
        listeners,
        log,
    } = to;
    // A shim gets these when it is started; the daemon reads them when it needs them.
    let shim = if to.adapter.is_foreign() { Cost::Handoff } else { Cost::Nothing };
    // A program that speaks the protocol cannot follow one that does not.
    let family =
        if from.adapter.is_foreign() == adapter.is_foreign() { Cost::Handoff } else { Cost::Restart };
    found.is("binary", &from.binary, binary, Cost::Handoff);
    found.is("args", &from.args, args, Cost::Handoff);
    found.is("type", &from.kind, kind, Cost::Restart);
    found.is("adapter", &from.adapter, adapter, family);
    found.is("channel", &from.channel, channel, Cost::Handoff);
    found.is("mode", &from.mode, mode, Cost::Restart);
    found.is("working_dir", &from.working_dir, working_dir, Cost::Handoff);
    found.is("deadline", &from.deadline_ms, deadline_ms, Cost::Nothing);
    found.is("drain_grace", &from.drain_grace_ms, drain_grace_ms, Cost::Nothing);
    found.is("stragglers", &from.stragglers, stragglers, Cost::Nothing);
    found.is("lease", &from.lease_ms, lease_ms, Cost::Handoff);
    found.is("stop_grace", &from.stop_grace_ms, stop_grace_ms, shim);
    found.is("resume_limit", &from.resume_limit_ms, resume_limit_ms, Cost::Nothing);
    found.is("answer_grace", &from.answer_grace_ms, answer_grace_ms, shim);
    found.is("autostart", &from.autostart, autostart, Cost::Nothing);
    found.restart(&from.restart, restart);
    found.variables(&from.env, env);
    found.is("env_file", &from.env_files, env_files, Cost::Handoff);
    found.is("env_inherit", &from.env_inherit, env_inherit, Cost::Handoff);
    found.is("credentials", &from.credentials, credentials, Cost::Handoff);
    found.process(&from.process, process);
    found.listeners(&from.listeners, listeners);
    found.is("log", &from.log, log, Cost::Handoff);
    found.program(&from.program, program);
    found.is("probe", &from.probe, probe, Cost::Nothing);
    found.dependencies(&from.dependencies, dependencies);
    found.update(&from.update, update);
    found.is("update.watch", &from.watch, watch, Cost::Nothing);
    found.hooks(&from.hooks, hooks);
    let without_canary = |trial: &super::TrialSettings| {
        (trial.probation_ms, trial.interval_ms, trial.failures, trial.errors.clone())
    };
    found.is("probation", &without_canary(&from.trial), &without_canary(trial), Cost::Nothing);
    found.is("canary", &from.trial.canary, &trial.canary, Cost::Nothing);
    found.is("liveness", &from.liveness, liveness, Cost::Nothing);
    if *kind == ServiceKind::Oneshot {
        // A job that runs is not replaced: its next run goes by the file.
        found.0.iter_mut().filter(|it| it.cost == Cost::Handoff).for_each(|it| it.cost = Cost::Nothing);
    }
    without_derived(found.0, [&from.text, &to.text])
}

/// Leaves out keys that neither file has: their values follow from another key, which differs itself.
fn without_derived(mut found: Vec<Difference>, texts: [&str; 2]) -> Vec<Difference> {
    if !found.is_empty() {
        let tables = texts.map(|text| text.parse::<toml::Table>().unwrap_or_default());
        let is_written = |key: &str| tables.iter().any(|table| table.contains_key(key));
        found.retain(|it| is_written(it.key.split('.').next().unwrap_or_default()));
    }
    found
}

struct Found(Vec<Difference>);

impl Found {
    fn add(&mut self, key: impl Into<String>, cost: Cost) {
        self.0.push(Difference { key: key.into(), cost });
    }

    fn is<T: PartialEq>(&mut self, key: &str, from: &T, to: &T, cost: Cost) {
        if from != to {
            self.add(key, cost);
        }
    }

    fn restart(
        &mut self,
        from: &handoff_protocol::restart::Restart,
        to: &handoff_protocol::restart::Restart,
    ) {
        use handoff_protocol::restart::Restart;
        self.is("restart", &from.when, &to.when, Cost::Nothing);
        self.is("success_exit_codes", &from.success, &to.success, Cost::Nothing);
        let backoff = |it: &Restart| Restart { when: to.when, success: Vec::new(), ..it.clone() };
        self.is("backoff", &backoff(from), &backoff(to), Cost::Nothing);
    }

    /// Only names: a value may be a secret.
    fn variables(&mut self, from: &BTreeMap<String, String>, to: &BTreeMap<String, String>) {
        for name in either(from.keys(), to.keys()) {
            self.is(&format!("env.{name}"), &from.get(name), &to.get(name), Cost::Handoff);
        }
    }

    /// What the process gives itself at its start.
    fn process(&mut self, from: &ProcessSettings, to: &ProcessSettings) {
        // Without `..`: a new setting does not compile before it has a cost. The places and ids follow from others.
        let ProcessSettings { user, group, groups, attributes, places: _ } = to;
        let Attributes { ids: _, umask, limits, nice, no_new_privs, ambient, bounding, private_tmp } =
            attributes;
        let earlier = &from.attributes;
        self.is("user", &from.user, user, Cost::Handoff);
        self.is("group", &from.group, group, Cost::Handoff);
        self.is("supplementary_groups", &from.groups, groups, Cost::Handoff);
        self.is("umask", &earlier.umask, umask, Cost::Handoff);
        self.is("limits", &earlier.limits, limits, Cost::Handoff);
        self.is("nice", &earlier.nice, nice, Cost::Handoff);
        self.is("no_new_privs", &earlier.no_new_privs, no_new_privs, Cost::Handoff);
        let capabilities = (earlier.ambient, earlier.bounding);
        self.is("capabilities", &capabilities, &(*ambient, *bounding), Cost::Handoff);
        self.is("private_tmp", &earlier.private_tmp, private_tmp, Cost::Handoff);
    }

    /// They count for the next start.
    fn dependencies(&mut self, from: &[Dependency], to: &[Dependency]) {
        for key in ["requires", "wants", "after"] {
            let names = |all: &[Dependency]| -> Vec<ServiceName> {
                all.iter().filter(|it| it.key() == key).map(|it| it.name.clone()).collect()
            };
            self.is(key, &names(from), &names(to), Cost::Nothing);
        }
    }

    fn listeners(&mut self, from: &[Listener], to: &[Listener]) {
        let by_name = |listeners: &[Listener]| -> BTreeMap<String, _> {
            let settings = |it: &Listener| (it.address.clone(), it.mode, it.owner.clone());
            listeners.iter().map(|it| (it.name.to_string(), settings(it))).collect()
        };
        let (from, to) = (by_name(from), by_name(to));
        for name in either(from.keys(), to.keys()) {
            self.is(&format!("listen.{name}"), &from.get(name), &to.get(name), Cost::Restart);
        }
    }

    fn program(&mut self, from: &ProgramSettings, to: &ProgramSettings) {
        let ProgramSettings {
            stop_signal,
            stop_mode,
            reload_signal,
            notify,
            drain,
            answer_pause_ms,
            drain_signal,
            warm,
        } = to;
        self.is("stop_signal", &from.stop_signal, stop_signal, Cost::Handoff);
        self.is("stop_mode", &from.stop_mode, stop_mode, Cost::Handoff);
        self.is("reload_signal", &from.reload_signal, reload_signal, Cost::Nothing);
        self.is("notify", &from.notify, notify, Cost::Handoff);
        self.is("drain", &from.drain, drain, Cost::Handoff);
        self.is("answer_pause", &from.answer_pause_ms, answer_pause_ms, Cost::Handoff);
        self.is("drain_signal", &from.drain_signal, drain_signal, Cost::Handoff);
        self.is("warm", &from.warm, warm, Cost::Handoff);
    }

    /// They count for the versions that come in later.
    fn update(&mut self, from: &Update, to: &Update) {
        let Update {
            store,
            keep,
            member,
            tree,
            version_command,
            version_command_at: _,
            max_size_bytes,
            trust,
        } = to;
        self.is("store", &from.store, store, Cost::Nothing);
        self.is("update.keep", &from.keep, keep, Cost::Nothing);
        self.is("update.member", &from.member, member, Cost::Nothing);
        self.is("update.tree", &from.tree, tree, Cost::Nothing);
        self.is("update.version_command", &from.version_command, version_command, Cost::Nothing);
        self.is("update.max_size", &from.max_size_bytes, max_size_bytes, Cost::Nothing);
        self.is("update.require", &from.trust, trust, Cost::Nothing);
    }

    fn hooks(&mut self, from: &Hooks, to: &Hooks) {
        let Hooks { preflight, pre_upgrade, post_commit, post_rollback, on_failed, drain, places: _ } = to;
        self.is("preflight", &from.preflight, preflight, Cost::Nothing);
        self.is("drain_command", &from.drain, drain, Cost::Nothing);
        self.is("hooks.pre_upgrade", &from.pre_upgrade, pre_upgrade, Cost::Nothing);
        self.is("hooks.post_commit", &from.post_commit, post_commit, Cost::Nothing);
        self.is("hooks.post_rollback", &from.post_rollback, post_rollback, Cost::Nothing);
        self.is("hooks.on_failed", &from.on_failed, on_failed, Cost::Nothing);
    }
}

/// The names that are in one of both, sorted, each once.
fn either<'a>(
    one: impl Iterator<Item = &'a String>,
    other: impl Iterator<Item = &'a String>,
) -> std::collections::BTreeSet<&'a String> {
    one.chain(other).collect()
}

#[cfg(test)]
#[path = "difference_tests.rs"]
mod tests;
