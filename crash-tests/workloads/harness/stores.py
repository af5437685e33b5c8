"""Stores and web servers that own something, so that one process at a time may run: exclusive mode."""

import os
import pwd
import subprocess

from .server import DIES, SERVERS, Server, get, python_load
from .versions import by_owner_of, by_page

# As an unprivileged user, for a program that refuses to be root.
AS_UNPRIVILEGED = "setpriv --reuid=65534 --regid=65534 --clear-groups --"


def store_loads(dialect, *options):
    return lambda place: {"raw sockets": python_load(place, "store_load.py", "--dialect", dialect, *options)}


def good_and_bad(place, line, **environment):
    good = {version: place.script(version, line, **environment) for version in "AB"}
    return good | {"bad": place.script("bad", DIES)}


def redis(*options):
    def versions(place, _):
        (place.dir / "data").mkdir()
        line = f"{place.installed.redis} --bind 127.0.0.1 --port {place.port} --dir {place.dir}/data"
        # A title would be written over the environment, by which its processes are found.
        line += " --daemonize no --set-proc-title no"
        return good_and_bad(place, " ".join([line, *options]), LD_LIBRARY_PATH=place.installed.libraries)

    return versions


PING = b"*1\r\n$4\r\nPING\r\n"
REDIS_AOF = Server(
    "redis, AOF",
    "C",
    ("stores", "python-mcp"),
    redis("--save ''", "--appendonly yes", "--appendfsync always"),
    store_loads("redis"),
    by_owner_of(PING),
    asks=PING,
)
REDIS_RDB = Server(
    "redis, RDB",
    "C",
    ("stores", "python-mcp"),
    # It saves at its end.
    redis("--save '3600 1'", "--appendonly no"),
    store_loads("redis"),
    by_owner_of(PING),
    asks=PING,
)


def memcached(place, _):
    user = f" -u {pwd.getpwuid(65534).pw_name}" if os.geteuid() == 0 else ""
    line = f"{place.installed.memcached} -l 127.0.0.1 -p {place.port} -U 0{user}"
    return good_and_bad(place, line, LD_LIBRARY_PATH=place.installed.libraries)


VERSION = b"version\r\n"
MEMCACHED = Server(
    "memcached",
    "C",
    ("stores", "python-mcp"),
    memcached,
    store_loads("memcached", "--cache", "1"),
    by_owner_of(VERSION),
    asks=VERSION,
)


def postgres_data(place):
    """A cluster with the table of the load in it."""
    place.dir.parent.chmod(0o711)
    place.dir.chmod(0o711)
    data = place.dir / "data"
    data.mkdir()
    as_user = []
    if os.geteuid() == 0:
        os.chown(data, 65534, 65534)
        as_user = AS_UNPRIVILEGED.split()
    options = ["-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run([*as_user, place.installed.postgres / "initdb", *options], check=True, capture_output=True, cwd="/")
    single = [*as_user, place.installed.postgres / "postgres", "--single", "-D", str(data), "postgres"]
    table = b"CREATE TABLE workload (key text PRIMARY KEY, value text)\n"
    subprocess.run(single, input=table, check=True, capture_output=True, cwd="/")


def postgres(place, _):
    as_user = f"{AS_UNPRIVILEGED} " if os.geteuid() == 0 else ""
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": place.port,
        "unix_socket_directories": "''",
        "max_connections": 50,
        "shared_buffers": "16MB",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return good_and_bad(place, f"{as_user}{place.installed.postgres}/postgres -D {place.dir}/data {options}")


# SSLRequest: answered by one byte, by any of its processes.
SSL = bytes([0, 0, 0, 8, 4, 210, 22, 47])
POSTGRES = Server(
    "PostgreSQL",
    "C",
    ("postgresql", "python-mcp"),
    postgres,
    store_loads("postgres"),
    by_owner_of(SSL),
    asks=SSL,
    # The fast end: it does not wait for clients to leave.
    stop_signal="SIGINT",
    before=postgres_data,
)


def web_load(body):
    return lambda place: {"raw sockets": python_load(place, "http_load.py", "--body", body)}


JAVA = Server(
    "web server of the JDK",
    "Java",
    ("java", "python-mcp"),
    lambda place, _: good_and_bad(place, f"java -cp {place.installed.java_classes} Web {place.port}"),
    web_load("hello from java"),
    by_page("/"),
    probe=("/", 200),
)
CLUSTER = Server(
    "Node cluster",
    "JavaScript",
    ("python-mcp",),
    lambda place, _: good_and_bad(place, f"node {SERVERS}/cluster.js {place.port}"),
    web_load("hello from node"),
    by_page("/"),
    probe=("/", 200),
    asks=get("/"),
)
