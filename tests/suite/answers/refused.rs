//! After a refused start, `status` says why the service does not run.

use std::fs;
use std::net::TcpListener;

use handoff::control::api::{Request, State};

use super::{say, write};
use crate::support::{Rig, close, free_address, service, version};

#[test]
fn status_says_why_a_start_was_refused_until_one_succeeds() {
    let rig = Rig::new();
    let address = rig.write_service("s", &rig.path("testee-1"), "");
    let said = say(&rig, &["start", "s"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let status = rig.status("s");
    let problem = status.problem.unwrap();
    assert_eq!(status.state, State::Failed);
    assert!(problem.starts_with("The last start was refused: "), "{problem}");
    assert!(problem.contains("testee-1\" does not exist"), "{problem}");
    assert!(say(&rig, &["list"]).stdout.contains("does not exist"));

    rig.release("1", "");
    let taken = TcpListener::bind(address).unwrap();
    assert_eq!(say(&rig, &["start", "s"]).code, Some(1));
    let problem = rig.status("s").problem.unwrap();
    let expected = format!("is in use by pid {}", std::process::id());
    assert!(problem.contains(&expected) && !problem.contains("does not exist"), "the last one: {problem}");

    close(taken);
    assert_eq!(say(&rig, &["start", "s"]).code, Some(0));
    let status = rig.looked_at("s");
    assert_eq!((status.state, status.problem), (State::Serving, None));
    rig.call(Request::Stop(service("s"))).unwrap();
    let status = rig.looked_at("s");
    assert_eq!((status.state, status.problem), (State::Stopped, None));
}

#[test]
fn another_service_file_ends_it() {
    let rig = Rig::new();
    rig.write_service("s", &rig.path("testee-1"), "");
    assert_eq!(say(&rig, &["start", "s"]).code, Some(1));
    assert!(rig.status("s").problem.is_some());
    assert!(rig.status("s").problem.is_some(), "the same file changes nothing");
    rig.write_service("s", &rig.release("2", ""), "");
    let status = rig.looked_at("s");
    assert_eq!((status.state, status.problem), (State::Stopped, None));

    rig.write_service("s", &rig.path("testee-3"), "");
    assert_eq!(say(&rig, &["start", "s"]).code, Some(1));
    fs::write(rig.path("config/services/s.toml"), "binary = 7\n").unwrap();
    let problem = rig.status("s").problem.unwrap();
    assert!(problem.contains("s.toml:1:10") && !problem.contains("refused"), "{problem}");
}

#[test]
fn the_cause_of_a_refused_version_is_reported_too() {
    let rig = Rig::new();
    let script = rig.path("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    crate::support::executable(&script);
    rig.write_service("s", &script, "store = true\n");
    let said = say(&rig, &["start", "s"]);
    assert_eq!(said.code, Some(6), "{said:?}");
    let problem = rig.status("s").problem.unwrap();
    assert!(problem.contains("/no/such/interpreter"), "{problem}");
}

#[test]
fn a_known_service_whose_file_takes_an_address_of_another_one_is_reported() {
    let rig = Rig::new();
    let address = rig.serve("a", "1", "", "");
    let (binary, own) = (rig.release("2", ""), free_address());
    write(&rig, "b", &binary, &own.to_string(), "");
    assert_eq!(rig.status("b").state, State::Stopped);
    write(&rig, "b", &binary, &address.to_string(), "");
    for _ in 0..2 {
        let status = rig.status("b");
        let problem = status.problem.unwrap();
        assert_eq!(status.state, State::Failed);
        assert!(problem.contains("an address of \"a\" too") && problem.contains("b.toml:7:8"), "{problem}");
        assert_eq!(say(&rig, &["start", "b"]).code, Some(3));
    }
    assert_eq!((rig.looked_at("a").problem, version(address).as_str()), (None, "1"));
    write(&rig, "b", &binary, &own.to_string(), "");
    assert_eq!(rig.looked_at("b").problem, None);
}
