"""Which version of a server answers, seen from outside."""

import http.client
import os
import re
import socket
from pathlib import Path


def by_page(path):
    """Of a server that says it in the header X-Version."""

    def version(place):
        connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().getheader("x-version")
        finally:
            connection.close()

    return version


def by_owner(path):
    """Of any other web server: the process that has accepted a connection, and answered on it, knows its version."""
    return by_owner_of(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


def by_owner_of(question):
    """The same for a server that answers this question."""

    def version(place):
        with socket.create_connection(("127.0.0.1", place.port), 10) as sock:
            sock.sendall(question)
            sock.settimeout(10)
            if not sock.recv(1):
                return None
            # The table of connections is read in parts, and misses one now and then while others come and go.
            for _ in range(20):
                owner = owner_of(place, sock.getsockname()[1])
                if owner is not None:
                    return version_of(owner)
            return None

    return version


def owner_of(place, client_port):
    """The process that holds the other end of a connection."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            parts = line.split()
            local, remote = (int(parts[at].rpartition(":")[2], 16) for at in (1, 2))
            if local == place.port and remote == client_port:
                pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
                return next((pid for pid in pids if holds(pid, f"socket:[{parts[9]}]") and version_of(pid)), None)
    return None


def holds(pid, name):
    try:
        return any(os.readlink(entry) == name for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def version_of(pid):
    """By the variable that its script has set, or by where its program lies. A process that writes its title over its environment
    has its version from its parent."""
    while pid > 1:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            program = os.readlink(f"/proc/{pid}/exe")
            said = re.search(r"(?:^|\0)WORKLOAD_VERSION=(\w+)", environment) or re.search(r"/version-(\w+)/", program)
            if said:
                return said[1]
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return None
        pid = int(re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)[1])
    return None
