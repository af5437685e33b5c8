use std::path::PathBuf;

use super::*;

fn file(name: &str, text: &str) -> FileNow {
    let file = PathBuf::from(format!("/etc/services/{name}.toml"));
    config::Service::parse(name.parse().unwrap(), &file, &format!("binary = \"/bin/{name}\"\n{text}"))
}

fn known(name: &str, text: &str, state: KnownState) -> (ServiceName, KnownService) {
    let settings = file(name, text).unwrap();
    let in_use = (state == KnownState::Running).then(|| Rc::new(settings.clone()));
    (name.parse().unwrap(), KnownService { state, in_use, settings })
}

fn plan(known: &[(ServiceName, KnownService)], files: &[(&str, &str)]) -> Plan {
    let files = files.iter().map(|(name, text)| (name.parse().unwrap(), file(name, text))).collect();
    Plan::make(&known.iter().cloned().collect(), files, Vec::new())
}

/// The rows in one line each.
fn shown(plan: &Plan) -> Vec<String> {
    let one = |row: &PlannedService| {
        let name = row.service.as_ref().map_or("-", ServiceName::as_str);
        format!("{name} {} {} {}", row.change.as_str(), row.cost.as_str(), row.keys.join(","))
    };
    plan.rows.iter().map(|row| one(row).trim_end().to_owned()).collect()
}

#[test]
fn each_state_and_each_kind_of_file_has_a_row() {
    use KnownState::{New, Running, Stopped};
    let same = "[listen]\nmain = \"127.0.0.1:1\"";
    let table: [(Option<KnownState>, Option<&str>, &str); 24] = [
        (None, Some(same), "web added start"),
        (None, Some("autostart = false"), "web added nothing"),
        (None, Some("mode = 1"), "web broken nothing"),
        (None, None, ""),
        (Some(New), Some(same), "web added start"),
        (Some(New), Some("autostart = false"), "web added nothing"),
        (Some(New), Some("mode = 1"), "web broken nothing"),
        (Some(New), None, "web removed nothing"),
        (Some(Stopped), Some(same), "web unchanged nothing"),
        (Some(Stopped), Some("args = [\"x\"]\n[listen]\nmain = \"127.0.0.1:1\""), "web changed nothing args"),
        (
            Some(Stopped),
            Some("mode = \"overlap\"\n[listen]\nmain = \"127.0.0.1:1\""),
            "web changed nothing mode",
        ),
        (Some(Stopped), Some("[listen]\nmain = \"127.0.0.1:2\""), "web changed nothing listen.main"),
        (Some(Stopped), Some("mode = 1"), "web broken nothing"),
        (Some(Stopped), Some("nonsense"), "web broken nothing"),
        (Some(Stopped), None, "web removed nothing"),
        (Some(Running), Some(same), "web unchanged nothing"),
        (
            Some(Running),
            Some("deadline = \"9m\"\n[listen]\nmain = \"127.0.0.1:1\""),
            "web changed nothing deadline",
        ),
        (Some(Running), Some("args = [\"x\"]\n[listen]\nmain = \"127.0.0.1:1\""), "web changed handoff args"),
        (
            Some(Running),
            Some(
                "args = [\"x\"]\ndeadline = \"9m\"\n[listen]\nmain = \"127.0.0.1:1\"\n[env]\nA = \"secret\"",
            ),
            "web changed handoff args,deadline,env.A",
        ),
        (Some(Running), Some("[listen]\nmain = \"127.0.0.1:2\""), "web changed restart listen.main"),
        (
            Some(Running),
            Some("adapter = \"inject\"\n[listen]\nmain = \"127.0.0.1:1\""),
            "web changed restart adapter",
        ),
        (Some(Running), Some("mode = 1"), "web broken nothing"),
        (Some(Running), Some("nonsense"), "web broken nothing"),
        (Some(Running), None, "web removed stop"),
    ];
    for (state, text, wanted) in table {
        let known: Vec<_> = state.map(|state| known("web", same, state)).into_iter().collect();
        let files: Vec<_> = text.map(|text| ("web", text)).into_iter().collect();
        assert_eq!(shown(&plan(&known, &files)).join("\n"), wanted, "{state:?} {text:?}");
    }
}

#[test]
fn a_newcomer_does_not_get_an_address_that_is_in_use_and_its_holder_is_named() {
    let main = "[listen]\nmain = \"127.0.0.1:1\"";
    let known = [known("web", main, KnownState::Running)];
    // The name of the newcomer sorts first.
    let made = plan(&known, &[("a", main), ("web", main)]);
    assert_eq!(shown(&made), ["a broken nothing", "web unchanged nothing"]);
    let cause = &made.rows[0].errors[0].cause;
    assert!(cause.contains("service web") && cause.contains("web.toml"), "{cause}");
}

#[test]
fn a_service_that_wants_the_address_of_another_one_is_refused_unless_that_gives_it_up() {
    let at = |port| format!("[listen]\nmain = \"127.0.0.1:{port}\"");
    let known = [known("a", &at(1), KnownState::Running), known("b", &at(2), KnownState::Running)];
    let taken = plan(&known, &[("a", &at(2)), ("b", &at(2))]);
    assert_eq!(shown(&taken), ["a broken nothing", "b unchanged nothing"]);
    let given_up = plan(&known, &[("a", &at(2)), ("b", &at(3))]);
    assert_eq!(shown(&given_up), ["a changed restart listen.main", "b changed restart listen.main"]);
    assert_eq!(given_up.stops().len(), 2);
}

#[test]
fn a_process_that_runs_with_other_settings_than_the_daemon_goes_by_is_handed_over() {
    let (name, mut service) = known("web", "args = [\"new\"]", KnownState::Running);
    service.in_use = Some(Rc::new(file("web", "deadline = \"9m\"").unwrap()));
    let made = plan(&[(name, service)], &[("web", "args = [\"new\"]")]);
    assert_eq!(shown(&made), ["web changed handoff args"], "the deadline is the daemon's");
}

#[test]
fn what_belongs_to_no_service_breaks_the_plan_too() {
    let error = config::name_of(std::path::Path::new("/etc/services/a b.toml")).unwrap_err();
    let made = Plan::make(&BTreeMap::new(), BTreeMap::new(), vec![error]);
    assert_eq!(shown(&made), ["- broken nothing"]);
    assert!(made.rows[0].errors[0].to_string().contains("a b"), "{:?}", made.rows);
}
