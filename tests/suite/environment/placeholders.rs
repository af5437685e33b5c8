//! The address of a listener in arguments and variables.

use handoff::control::api::Request;

use super::{PYTHON, arguments_of, edit, environment_of, start};
use crate::support::{Rig, ask, free_address, service};

#[test]
fn an_address_is_written_once() {
    let (rig, address) = (Rig::new(), free_address());
    let text = format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}, \"{{listen.main.address}}\", '{{\"port\":{{listen.main.port}}}}', \"{{{{a.b}}}}\"]\n\
         autostart = false\nstore = false\nadapter = \"inject\"\nmode = \"overlap\"\n\
         env = {{ PORT = \"{{listen.main.port}}\", ADMIN = \"{{listen.admin.path}}\" }}\n\
         [listen]\nmain = \"{address}\"\nadmin = \"unix:{}\"\n",
        rig.path("admin.sock").display()
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    let pid = start(&rig);
    ask(address, "x").unwrap();
    let port = address.port().to_string();
    assert_eq!(
        arguments_of(pid)[3..6],
        [address.to_string(), format!("{{\"port\":{port}}}"), "{a.b}".to_owned()]
    );
    let environment = environment_of(pid);
    assert_eq!(environment["PORT"], port);
    assert_eq!(environment["ADMIN"], rig.path("admin.sock").to_str().unwrap());

    // A changed address is used after a stop and a start, in both places.
    let other = free_address();
    edit(&rig, &address.to_string(), &other.to_string());
    rig.call(Request::Stop(service("s"))).unwrap();
    assert_eq!(arguments_of(start(&rig))[3], other.to_string());
    ask(other, "x").unwrap();

    edit(&rig, "{listen.main.port}\"", "{listen.mian.port}\"");
    let output = rig.run(&["check", "s"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(
        told.contains("env.PORT: {listen.mian.port}: there is no listener \"mian\"; did you mean \"main\"?"),
        "{told}"
    );
}
