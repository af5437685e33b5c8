//! Files that other users must not read or change, attributes that a copy would lose, and versions that were removed.

use std::fs;
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use handoff::control::api::Request;
use handoff::sys::attribute;

use super::StoredService;
use crate::support::{Rig, copy_program, executable, processes_of, service, version, wait_for};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, bits: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(bits)).unwrap();
}

#[test]
fn a_copy_is_no_wider_than_the_original() {
    let rig = Rig::new();
    let top = rig.path("tree");
    fs::create_dir(&top).unwrap();
    fs::rename(rig.release("1", ""), top.join("program")).unwrap();
    fs::write(top.join("secret"), "secret").unwrap();
    fs::write(top.join("public"), "public").unwrap();
    for (name, bits) in [("secret", 0o600), ("public", 0o644), ("program", 0o750)] {
        set_mode(&top.join(name), bits);
    }
    rig.write_service("s", &top, "store = true\n[update]\nmember = \"program\"\n");
    set_mode(&rig.path("config/services/s.toml"), 0o600);
    rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(mode(&rig.path("state/services/s/running.toml")), 0o600);
    let stored = rig.status("s").stored.unwrap();
    let files = stored.parent().unwrap();
    assert_eq!(["secret", "public", "program"].map(|name| mode(&files.join(name))), [0o400, 0o444, 0o550]);

    // The same content again, which other users may not read now.
    set_mode(&top.join("public"), 0o600);
    let stored = StoredService { rig, address: crate::support::free_address() };
    assert_eq!(stored.installed(&top, &[]).code, Some(0));
    assert_eq!(mode(&files.join("public")), 0o400);
    let alone = stored.rig.release("2", "");
    set_mode(&alone, 0o700);
    assert_eq!(stored.installed(&alone, &[]).code, Some(0));
    assert_eq!(mode(&stored.rig.status("s").stored.unwrap()), 0o500);
}

#[test]
fn what_a_copy_would_lose_is_kept_or_refused() {
    let stored = StoredService::serve("");
    let second = stored.rig.release("2", "");
    // cap_net_bind_service+ep, in the format of setcap(8).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    if attribute::set(File::open(&second).unwrap(), c"security.capability", &capability).is_err() {
        eprintln!("not run: it needs CAP_SETFCAP");
        return;
    }
    let ran = stored.installed(&second, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let has = |path: &Path| attribute::get(File::open(path).unwrap(), c"security.capability", 64).ok();
    let kept = stored.rig.status("s").stored.unwrap();
    assert_eq!(has(&kept).as_deref(), Some(&capability[..]));

    let third = stored.rig.release("3", "");
    chown(&third, Some(12_345), None).unwrap();
    set_mode(&third, 0o4755);
    let refused = stored.installed(&third, &[]);
    assert_eq!(refused.code, Some(6), "{refused:?}");
    assert!(refused.said.contains("set-user-ID") && refused.said.contains("store = false"), "{refused:?}");
}

#[test]
fn root_runs_nothing_that_another_user_could_change() {
    let rig = Rig::new();
    let (place, hook) = (rig.path("place"), rig.path("hook"));
    fs::create_dir(&place).unwrap();
    fs::write(&hook, "#!/bin/sh\n").unwrap();
    executable(&hook);
    let binary = place.join("program");
    fs::rename(rig.release("1", ""), &binary).unwrap();
    if chown(&binary, Some(12_345), None).is_err() {
        eprintln!("not run: it needs root");
        return;
    }
    for store in ["true", "false"] {
        rig.write_service("s", &binary, &format!("store = {store}\npreflight = [{hook:?}]\n"));
        let run = |args: &[&str]| {
            let output = rig.run(args);
            (
                output.status.code(),
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            )
        };
        assert_eq!(chown(&binary, Some(12_345), None).ok(), Some(()));
        let (code, said) = run(&["check", "s"]);
        assert!(code == Some(3) && said.contains("program\" belongs to user 12345"), "{said}");
        let (code, said) = run(&["start", "s"]);
        assert!(code == Some(6) && said.contains("belongs to user 12345"), "{said}");
        chown(&binary, Some(0), None).unwrap();
        chown(&place, Some(12_345), None).unwrap();
        assert!(run(&["check", "s"]).1.contains("place\" belongs to user 12345"));
        chown(&place, Some(0), Some(12_345)).unwrap();
        set_mode(&place, 0o775);
        assert!(run(&["check", "s"]).1.contains("writable by group 12345"));
        set_mode(&place, 0o755);
        chown(&hook, Some(12_345), None).unwrap();
        let (code, said) = run(&["check", "s"]);
        assert!(
            code == Some(3) && said.contains("preflight") && said.contains("hook\" belongs to user"),
            "{said}"
        );
        chown(&hook, Some(0), None).unwrap();
        assert_eq!(run(&["check", "s"]).0, Some(0));
    }
}

#[test]
fn a_program_that_another_user_can_change_is_not_restarted() {
    let stored = StoredService::serve_with("store = false\n");
    let binary = stored.rig.path("testee-1");
    if chown(&binary, Some(12_345), None).is_err() {
        eprintln!("not run: it needs root");
        return;
    }
    let pid = stored.rig.status("s").pid.unwrap();
    let refused = stored.run(&["restart", "s"]);
    assert!(refused.code == Some(6) && refused.said.contains("belongs to user 12345"), "{refused:?}");
    chown(&binary, Some(0), Some(12_345)).unwrap();
    set_mode(&binary, 0o777);
    let refused = stored.run(&["restart", "s"]);
    assert!(refused.code == Some(6) && refused.said.contains("writable"), "{refused:?}");
    assert_eq!(stored.rig.status("s").pid, Some(pid));

    // After a crash the service stays down until the permissions are correct.
    crate::support::kill(pid);
    let is_refused =
        |problem: &String| problem.contains("could not be started again") && problem.contains("writable");
    wait_for("the refusal", || stored.rig.status("s").problem.filter(is_refused));
    assert_eq!(stored.rig.status("s").pid, None);
    set_mode(&binary, 0o755);
    assert_eq!(stored.run_when_free(&["restart", "s"]).code, Some(0));
    assert_eq!(version(stored.address), "1");

    // An explicitly given file is not restricted.
    let given = stored.rig.release("2", "");
    chown(&given, Some(12_345), None).unwrap();
    let given = given.to_str().unwrap();
    assert_eq!(stored.run(&["upgrade", "s", "--binary", given]).code, Some(0));
    assert_eq!(stored.run(&["restart", "s"]).code, Some(0));
    assert_eq!(version(stored.address), "2");
}

#[test]
fn a_service_file_that_another_user_can_write_does_not_count() {
    let stored = StoredService::serve("");
    let file = stored.rig.path("config/services/s.toml");
    let pid = stored.rig.status("s").pid;
    set_mode(&file, 0o666);
    for verb in ["check", "restart"] {
        let refused = stored.run(&[verb, "s"]);
        assert_eq!(refused.code, Some(3), "{verb}: {refused:?}");
        assert!(refused.said.contains("is world-writable"), "{verb}: {refused:?}");
        assert!(refused.said.contains(&format!("chmod o-w {}", file.display())), "{verb}: {refused:?}");
    }
    let status = stored.rig.status("s");
    assert_eq!(status.pid, pid);
    assert!(status.problem.is_some_and(|problem| problem.contains("world-writable")));
    set_mode(&file, 0o644);
    assert_eq!(stored.run(&["check", "s"]).code, Some(0));
    assert_eq!(stored.rig.status("s").problem, None);
    if chown(&file, Some(12_345), None).is_err() {
        eprintln!("not run: it needs root");
        return;
    }
    let refused = stored.run(&["restart", "s"]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(refused.said.contains("belongs to user 12345"), "{refused:?}");
    assert_eq!(stored.rig.status("s").pid, pid);
}

#[test]
fn no_file_of_another_user_reports_a_version() {
    let stored = StoredService::serve("");
    let teller = stored.write("teller", "#!/bin/sh\necho s3 9.9\n", 0o755);
    if chown(&teller, Some(12_345), None).is_err() {
        eprintln!("not run: it needs root");
        return;
    }
    let (file, second) = (stored.rig.path("config/services/s.toml"), stored.rig.release("2", ""));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("[listen]", &format!("[update]\nversion_command = [{teller:?}]\n[listen]")),
    )
    .unwrap();
    let refused = stored.installed(&second, &[]);
    assert_eq!(refused.code, Some(6), "{refused:?}");
    assert!(
        refused.said.contains("version_command") && refused.said.contains("belongs to user 12345"),
        "{refused:?}"
    );
    stored.is_untouched();
    let checked = stored.run(&["check", "s"]);
    assert_eq!(checked.code, Some(3), "{checked:?}");
    assert!(checked.said.contains("update.version_command"), "{checked:?}");
    chown(&teller, Some(0), None).unwrap();
    set_mode(&teller, 0o757);
    assert_eq!(stored.installed(&second, &[]).code, Some(6));
    set_mode(&teller, 0o755);
    assert_eq!(stored.run(&["check", "s"]).code, Some(0));
    assert_eq!(stored.installed(&second, &[]).code, Some(0));
    assert_eq!(stored.rig.status("s").version.as_deref(), Some("s3 9.9"));
}

#[test]
fn a_version_that_is_taken_away_is_put_back() {
    let stored = StoredService::serve("");
    let second = stored.rig.release("2", "");
    assert_eq!(stored.installed(&second, &[]).code, Some(0));
    let versions = stored.rig.path("state/services/s/versions");
    // The daemon restores it from the running process, even if the original file is gone.
    fs::remove_file(&second).unwrap();
    fs::remove_dir_all(&versions).unwrap();
    let problem = stored.rig.looked_at("s").problem.unwrap_or_default();
    assert!(problem.contains("taken away") && problem.contains("the process that runs it"), "{problem}");
    let kept = stored.rig.status("s").stored.unwrap();
    assert!(kept.exists());
    assert_eq!(stored.run(&["restart", "s"]).code, Some(0));
    assert_eq!(version(stored.address), "2");

    // After a crash it is restored from the original file.
    copy_program(&kept, &second);
    executable(&second);
    fs::rename(&versions, stored.rig.path("elsewhere")).unwrap();
    let pid = stored.rig.status("s").pid.unwrap();
    fs::remove_dir_all(&versions).unwrap_or_default();
    crate::support::kill(pid);
    wait_for("another process", || stored.rig.status("s").pid.filter(|now| *now != pid));
    wait_for("its answer", || crate::support::ask(stored.address, "version").ok());
    assert_eq!(version(stored.address), "2");
    assert_eq!(processes_of(&versions).len(), 1);

    // An earlier version can be installed again.
    fs::remove_dir_all(&versions).unwrap();
    assert_eq!(stored.installed(&stored.rig.path("testee-1"), &[]).code, Some(0));
    assert_eq!(version(stored.address), "1");
}
