//! Which listener a program gets for its bind.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use handoff::shim::inject::{InjectEvent, MismatchReason};

use super::{Run, answer, spec};
use crate::support::free_address;

/// Binds and serves `s`. A client that sends a byte gets the text `served`.
fn serve(bind: &str) -> String {
    format!(
        "import socket, os, sys\n{bind}\ns.listen(5)\nprint('listens', flush=True)\n\
         while True:\n c, _ = s.accept()\n c.recv(1)\n c.sendall(b'served')\n c.close()\n"
    )
}

fn port_of(address: SocketAddr) -> u16 {
    address.port()
}

#[test]
fn a_stock_server_serves_what_waited_before_it_started() {
    let address = free_address();
    let (port, text) = (port_of(address).to_string(), address.to_string());
    let args = ["-m", "http.server", port.as_str(), "--bind", "127.0.0.1", "--directory", "/proc/sys/kernel"];
    let mut run = Run::start(&[&text], false, spec("/usr/bin/python3", &args));
    // The client may connect before the program binds: the slot already listens.
    let mut client = std::net::TcpStream::connect(address).unwrap();
    client.write_all(b"GET /ostype HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    client.read_to_string(&mut page).unwrap();
    assert!(page.contains("200 OK") && page.ends_with("Linux\n"), "{page}");
    let pid = run.started.pid;
    let name = || "a".to_owned();
    let events = run.events(1, |event| matches!(event, InjectEvent::Listening { .. }));
    assert_eq!(
        events,
        [InjectEvent::Bound { name: name(), pid }, InjectEvent::Listening { name: name(), pid }]
    );
    assert_eq!(run.end().signal, Some(9));
    // The slot outlives the program.
    std::net::TcpStream::connect(address).unwrap();
}

#[test]
fn other_spellings_of_an_address_get_it_too() {
    let rows = [
        ("127.0.0.1", "socket.AF_INET", "('0.0.0.0', PORT)"),
        ("127.0.0.1", "socket.AF_INET6", "('::ffff:127.0.0.1', PORT)"),
        ("127.0.0.1", "socket.AF_INET6", "('::', PORT)"),
        ("*", "socket.AF_INET6", "('::', PORT)"),
        ("*", "socket.AF_INET", "('', PORT)"),
        ("[::1]", "socket.AF_INET6", "('::1', PORT)"),
    ];
    for (said, family, bound) in rows {
        let port = port_of(free_address());
        let bind =
            format!("s = socket.socket({family})\ns.bind({})", bound.replace("PORT", &port.to_string()));
        let mut run = Run::python(&[&format!("{said}:{port}")], false, &serve(&bind));
        let ask = if said == "[::1]" { format!("[::1]:{port}") } else { format!("127.0.0.1:{port}") };
        assert_eq!(run.answer(ask.parse().unwrap()), "served", "{said} {bound}");
    }
}

#[test]
fn what_is_none_of_the_service_is_left_to_the_kernel() {
    let address = free_address();
    let elsewhere = free_address();
    let script = format!(
        "import socket\nt = socket.socket(); t.bind(('127.0.0.1', 0)); t.listen(1); print(t.getsockname()[1] > 0)\n\
         u = socket.socket(type=socket.SOCK_DGRAM); u.bind(('127.0.0.1', {port}))\n\
         o = socket.socket(); o.bind(('127.0.0.1', {other})); o.listen(1); print(o.getsockname()[1])\n\
         x = socket.socket(socket.AF_UNIX); x.bind('\\0handoff-test-{port}')\n\
         n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); n.bind((0, 0))\n\
         try:\n  socket.socket().bind(('127.0.0.2', {port}))\nexcept OSError as e: print(e)\n\
         try:\n  t.bind(('127.0.0.1', 0))\nexcept OSError as e: print(e.strerror)\n",
        port = port_of(address),
        other = port_of(elsewhere),
    );
    let mut run = Run::python(&[&format!("127.0.0.1:{}", address.port())], false, &script);
    assert_eq!(run.line(), "True");
    assert_eq!(run.line(), port_of(elsewhere).to_string());
    assert_eq!(run.line(), "Invalid argument");
    let events = run.events(6, |event| matches!(event, InjectEvent::Passed { .. }));
    let whys: Vec<MismatchReason> = events
        .into_iter()
        .map(|event| match event {
            InjectEvent::Passed { why, .. } => why,
            other => panic!("{other}"),
        })
        .collect();
    let said = address.to_string().parse().unwrap();
    let expected = [
        MismatchReason::Anything,
        MismatchReason::Datagrams(address),
        MismatchReason::Unknown,
        MismatchReason::Unknown,
        MismatchReason::Elsewhere(said),
        MismatchReason::Anything,
    ];
    assert_eq!(whys, expected);
}

#[test]
fn a_socket_keeps_its_number_and_its_settings() {
    for (blocking, inheritable) in [(true, false), (false, true), (true, true), (false, false)] {
        let address = free_address();
        let title = |value: bool| if value { "True" } else { "False" };
        let script = format!(
            "import socket, os, fcntl\ns = socket.socket()\n\
             s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n\
             s.setblocking({})\ns.set_inheritable({})\nn = s.fileno()\n\
             s.bind(('127.0.0.1', {}))\ns.listen()\n\
             print(s.fileno() == n, bool(fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK), s.get_inheritable(),\n\
             s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), s.getsockname()[1], flush=True)",
            title(blocking),
            title(inheritable),
            port_of(address),
        );
        let mut run = Run::python(&[&address.to_string()], false, &script);
        let expected = format!("True {} {} 1 {}", title(!blocking), title(inheritable), port_of(address));
        assert_eq!(run.line(), expected);
    }
}

#[test]
fn a_socket_that_was_watched_before_it_was_bound_still_wakes_the_program() {
    // Of two watchers with EPOLLEXCLUSIVE, the kernel wakes one or both.
    for (bits, watchers) in
        [("0", "(e, other)"), ("select.EPOLLET", "(e, other)"), ("select.EPOLLEXCLUSIVE", "(e,)")]
    {
        let address = free_address();
        let script = format!(
            "import socket, select\ns = socket.socket()\ns.setblocking(False)\n\
             e, other = select.epoll(), select.epoll()\nfor w in {watchers}: w.register(s, select.EPOLLIN | {bits})\n\
             s.bind(('127.0.0.1', {}))\ns.listen()\nprint('ready', flush=True)\n\
             print(all(w.poll(20) == [(s.fileno(), select.EPOLLIN)] for w in {watchers}), flush=True)\n\
             c, _ = s.accept()\nc.recv(1)\nc.sendall(b'woken')\nc.close()\n\
             for w in {watchers}: w.unregister(s)\nprint('done')\n",
            address.port(),
        );
        let mut run = Run::python(&[&address.to_string()], false, &script);
        assert_eq!(run.line(), "ready");
        assert_eq!(answer(address), "woken");
        assert_eq!([run.line(), run.line()], ["True", "done"], "{bits}");
    }
}

#[test]
fn two_listeners_are_distinguished() {
    let (first, second) = (free_address(), free_address());
    let script = format!(
        "import socket\ndef up(port):\n s = socket.socket(); s.bind(('127.0.0.1', port)); s.listen(); return s\n\
         two, one = up({}), up({})\nfor s, text in ((one, b'one'), (two, b'two')):\n c, _ = s.accept()\n \
         c.recv(1)\n c.sendall(text)\n c.close()\n",
        port_of(second),
        port_of(first),
    );
    let run = Run::python(&[&first.to_string(), &second.to_string()], false, &script);
    let events = run.bound(2);
    let names = events.iter().filter_map(|event| match event {
        InjectEvent::Bound { name, .. } => Some(name.as_str()),
        _ => None,
    });
    assert_eq!(names.collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!([answer(first), answer(second)], ["one", "two"]);
}

#[test]
fn a_unix_socket_whose_path_the_program_removes_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    for bound in [path.to_str().unwrap(), "a.sock"] {
        let dir = dir.path().display();
        let bind = format!(
            "os.chdir('{dir}')\nos.unlink('{bound}')\ns = socket.socket(socket.AF_UNIX)\ns.bind('{bound}')"
        );
        let mut run = Run::python(&[&format!("unix:{}", path.display())], false, &serve(&bind));
        assert_eq!(run.line(), "listens");
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"x").unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "served");
        run.end();
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_directory_may_have_two_names() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    let said = dir.path().join("a.sock");
    let bind = format!("s = socket.socket(socket.AF_UNIX)\ns.bind('{}/link/a.sock')", dir.path().display());
    let mut run = Run::python(&[&format!("unix:{}", said.display())], false, &serve(&bind));
    assert_eq!(run.line(), "listens");
    run.bound(1);
    assert!(Path::new(&said).exists());
}

#[test]
fn the_next_program_finds_nothing_of_the_last_one() {
    let address = free_address();
    let text = address.to_string();
    let bind = |set: &str| format!("s = socket.socket()\n{set}\ns.bind(('127.0.0.1', {}))", port_of(address));
    let idle = format!(
        "import socket\n{}\nprint('bound', flush=True)\nimport signal; signal.pause()",
        bind("s.setblocking(False)")
    );
    let mut first = Run::python(&[&text], false, &idle);
    assert_eq!(first.line(), "bound");
    first.end();
    // The slot is the same, and the other program has set its blocking mode.
    let mut second = first.again(&serve(&bind("")));
    assert_eq!(second.answer(address), "served");
}
