//! "Did you mean": the known word that is nearest to an unknown one.

/// The candidate nearest to `word`, unless all are too different for a typing error.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One error in a short word, or about one in three characters of a longer one.
    let tolerance = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= tolerance || is_stem(word, candidate))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// What people write who know other supervisors, and the key of that.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (&["workdir", "cwd", "chdir", "directory", "working_directory", "workingdirectory"], "working_dir"),
    (
        &["command", "cmd", "exec", "exec_start", "execstart", "program", "path", "executable", "run"],
        "binary",
    ),
    (&["arguments", "argv", "parameters", "options"], "args"),
    (&["environment", "envs", "environ", "vars"], "env"),
    (
        &["port", "ports", "address", "addr", "addresses", "bind", "socket", "sockets", "host", "listener"],
        "listen",
    ),
    (&["health", "healthcheck", "health_check", "check", "readiness"], "probe"),
    (&["timeout", "start_timeout", "timeout_start"], "deadline"),
    (&["stop_timeout", "timeout_stop", "kill_timeout", "grace_period"], "stop_grace"),
    (&["kill_signal", "killsignal", "stopsignal"], "stop_signal"),
    (&["exec_reload", "reload"], "reload_signal"),
    (&["enabled", "enable", "auto_start", "start"], "autostart"),
    (&["depends_on", "needs", "dependencies", "binds_to", "part_of"], "requires"),
    (&["before"], "after"),
    (&["logs", "logging", "stdout", "stderr"], "log"),
    (&["protocol"], "adapter"),
    (&["kind"], "type"),
    (&["respawn", "restart_policy"], "restart"),
    (&["retries", "restart_sec", "start_limit_burst", "max_restarts"], "backoff"),
    (&["success_exit_status", "exit_codes"], "success_exit_codes"),
    (&["environment_file", "environmentfile", "envfile", "env_files", "dotenv"], "env_file"),
    (&["pass_environment", "passenvironment"], "env_inherit"),
    (&["uid", "run_as", "runas"], "user"),
    (&["gid"], "group"),
    (&["supplementarygroups", "groups"], "supplementary_groups"),
    (&["ulimits", "rlimits", "limit", "limitnofile", "limit_nofile", "nofile"], "limits"),
    (
        &["ambient_capabilities", "ambientcapabilities", "capabilityboundingset", "cap_add", "cap_drop"],
        "capabilities",
    ),
];

/// What people look for that has no key, and what to do instead. A clause.
const WITHOUT_KEY: [(&[&str], &str); 1] =
    [(&["name", "service"], "the name of a service is that of its file")];

/// The key for which other supervisors have this word.
pub(super) fn meant(word: &str) -> Option<&'static str> {
    found(word, ELSEWHERE)
}

/// What to do instead of this word, which is no key here.
pub(super) fn explained(word: &str) -> Option<&'static str> {
    found(word, &WITHOUT_KEY)
}

fn found(word: &str, table: &[(&[&str], &'static str)]) -> Option<&'static str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    table.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, answer)| *answer)
}

/// Whether `word` is the beginning or end of the right word: `grace` for `drain_grace`, or `s3` for `s3-server`.
fn is_stem(word: &str, candidate: &str) -> bool {
    word.len() >= 2 && (candidate.starts_with(word) || candidate.ends_with(word))
}

#[cfg(test)]
mod tests {
    use super::{ELSEWHERE, explained, meant, nearest};
    use crate::config::known_keys;

    #[test]
    fn words_of_other_supervisors_mean_keys() {
        assert_eq!(meant("WorkingDirectory"), Some("working_dir"));
        assert_eq!(meant("ExecStart"), Some("binary"));
        assert_eq!(meant("binaries"), None);
        assert_eq!(meant("EnvironmentFile"), Some("env_file"));
        assert!(explained("name").unwrap().contains("that of its file"));
        for (words, key) in ELSEWHERE {
            assert!(known_keys().contains(key), "{key}");
            assert!(words.iter().all(|word| !known_keys().contains(word)), "{words:?}");
        }
    }

    #[test]
    fn finds_slips_and_halves_but_not_strangers() {
        let known = ["deadline", "drain_grace", "mode"];
        assert_eq!(nearest("deadlin", known), Some("deadline"));
        assert_eq!(nearest("daedline", known), Some("deadline"));
        assert_eq!(nearest("grace", known), Some("drain_grace"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
