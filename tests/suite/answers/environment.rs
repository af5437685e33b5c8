//! Environment variables with an empty value.

use super::CommandOutput;
use crate::support::Rig;

#[test]
fn an_empty_variable_counts_as_one_that_is_not_set() {
    let rig = Rig::new();
    for (option, variable) in [
        ("--config-dir", "HANDOFF_CONFIG_DIR"),
        ("--state-dir", "HANDOFF_STATE_DIR"),
        ("--runtime-dir", "HANDOFF_RUNTIME_DIR"),
    ] {
        let told = |set: fn(&mut std::process::Command, &str)| {
            let mut command = rig.handoff(&["check"]);
            set(&mut command, variable);
            let home = rig.path("home");
            command.env("HOME", &home).env("XDG_CONFIG_HOME", "").env("XDG_RUNTIME_DIR", "");
            CommandOutput::of(command.output().unwrap())
        };
        let empty = told(|command, variable| _ = command.env(variable, ""));
        let unset = told(|command, variable| _ = command.env_remove(variable));
        assert_eq!((empty.code, &empty.stdout), (Some(0), &unset.stdout), "{variable}: {empty:?}");
        let given = CommandOutput::of(rig.handoff(&["check", option, ""]).output().unwrap());
        assert_eq!(given.code, Some(64), "an option needs a value: {given:?}");
    }
}

#[test]
fn a_daemon_with_an_empty_log_filter_logs_as_without_one() {
    let mut rig = Rig::new();
    rig.stop_daemon();
    let log = rig.path("quiet.log");
    let mut command = rig.handoff(&["daemon"]);
    command.env("HANDOFF_LOG", "").stderr(std::fs::File::create(&log).unwrap());
    rig.daemon = Some(command.spawn().unwrap());
    crate::support::wait_for("the line about readiness", || {
        std::fs::read_to_string(&log).unwrap().contains(" INFO ").then_some(())
    });
}
