//! Keys of other supervisors in a service file: the mistake names the key that is meant.

use std::path::Path;

use handoff::config::Service;

#[test]
fn a_key_of_another_supervisor_leads_to_the_right_one() {
    let table = [
        ("workdir = \"/srv\"", "2:1: workdir: unknown key; did you mean \"working_dir\"?"),
        ("ExecStart = \"/srv/s\"", "2:1: ExecStart: unknown key; did you mean \"binary\"?"),
        ("environment = []", "2:1: environment: unknown key; did you mean \"env\"?"),
        (
            "port = 80",
            "2:1: port: unknown key; write the addresses as a table: [listen], with web = \"127.0.0.1:8080\"",
        ),
        ("run_as = \"www\"", "2:1: run_as: unknown key; did you mean \"user\"?"),
        ("name = \"www\"", "2:1: name: unknown key; the name of a service is that of its file"),
        ("qqqqqqqqq = 1", "2:1: qqqqqqqqq: unknown key; docs/service-file.md lists the keys"),
    ];
    for (line, told) in table {
        let text = format!("binary = \"/b\"\n{line}\n");
        let errors = Service::parse("s3".parse().unwrap(), Path::new("/c/s3.toml"), &text).unwrap_err();
        assert_eq!(errors.len(), 1, "{line}: {errors:?}");
        assert!(errors[0].to_string().contains(told), "{line}: {}", errors[0]);
    }
}
