"""The servers, what their versions are, what loads them, and the rows of the table."""

import http.client
import json
from . import place as here
from .server import DIES, SERVERS, Row, Server, python_load
from .stores import CLUSTER, JAVA, MEMCACHED, POSTGRES, REDIS_AOF, REDIS_RDB
from .versions import by_owner, by_page


def s3_loads(key, secret):
    def loads(place):
        options = ("--key", key, "--secret", secret)
        made = {"boto3": python_load(place, "s3_load.py", *options)}
        if place.installed.has("s5cmd"):
            made["s5cmd"] = python_load(place, "s5_load.py", *options, "--s5cmd", str(place.installed.s5cmd))
        return made

    return loads


def mcp_loads(*options):
    def loads(place):
        made = {"Python SDK": python_load(place, "mcp_load.py", *options)}
        if place.installed.has("everything"):
            argv = ["node", LOAD / "mcp_load.mjs", place.address, "--seconds", "600", *options]
            made["TypeScript SDK"] = (argv, {"WORKLOAD_NODE": str(place.installed.node_mcp)})
        return made

    return loads


# SeaweedFS: the gateway is a process of its own, with everything that it stores behind it.


def weed_backend(place):
    ports = {name: here.free_port() for name in ("master", "volume", "filer")}
    place.facts["filer"] = f"127.0.0.1:{ports['filer']}"
    data = place.dir / "weed"
    data.mkdir()
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    place.start(
        "weed-server",
        [place.installed.weed, "server", "-filer", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}", *options]
        + ["-volume.max=100", "-master.volumeSizeLimitMB=256", f"-filer.localSocket={data}/filer.sock"],
    )
    # It answers before it has a place to write to.
    place.wait_until("weed server takes files", lambda: takes_files(ports["filer"]), 60.0)


def takes_files(filer):
    connection = http.client.HTTPConnection("127.0.0.1", filer, timeout=10)
    try:
        connection.request("PUT", "/is-it-there", body=b"yes")
        return connection.getresponse().status == 201
    except OSError:
        return False
    finally:
        connection.close()


def weed_versions(place, _):
    credentials = [{"accessKey": "workload", "secretKey": "workload-secret"}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "workload", "credentials": credentials, "actions": actions}
    config = place.write("s3.json", json.dumps({"identities": [identity]}))

    def gateway(version):
        options = f"-port={place.port} -port.grpc={here.free_port()} -port.iceberg=0 -port.lance=0 -ip.bind=127.0.0.1"
        socket = f"-localSocket={place.dir}/s3-{version}.sock"
        return f"{place.installed.weed} s3 {options} {socket} -filer={place.facts['filer']} -config={config}"

    good = {version: place.script(version, gateway(version)) for version in "AB"}
    return good | {"bad": place.script("bad", gateway("bad") + " -config=/nowhere.json")}


WEED = Server(
    "SeaweedFS S3 gateway",
    "Go",
    ("weed", "boto3"),
    weed_versions,
    s3_loads("workload", "workload-secret"),
    by_owner("/healthz"),
    probe=("/healthz", 200),
    before=weed_backend,
)


# s3s-fs: one process at a time may work on its directory.


def data_directory(place):
    (place.dir / "data").mkdir()


def s3s_versions(place, _):
    program = place.installed.s3s_fs
    options = (
        f"--host 127.0.0.1 --port {place.port} --access-key workload --secret-key workload-secret {place.dir}/data"
    )
    good = {version: place.script(version, f"{program} {options}") for version in "AB"}
    return good | {"bad": place.script("bad", DIES)}


S3S_FS = Server(
    "s3s-fs",
    "Rust",
    ("s3s-fs", "boto3"),
    s3s_versions,
    s3_loads("workload", "workload-secret"),
    by_owner("/"),
    stop_signal="SIGINT",
    before=data_directory,
)


def s3rver_versions(place, _):
    options = f"-a 127.0.0.1 -p {place.port} -d {place.dir}/data --no-vhost-buckets --silent"
    good = {version: place.script(version, f"node {place.installed.s3rver} {options}") for version in "AB"}
    return good | {"bad": place.script("bad", DIES)}


S3RVER = Server(
    "s3rver",
    "JavaScript",
    ("s3rver", "boto3"),
    s3rver_versions,
    s3_loads("S3RVER", "S3RVER"),
    by_owner("/"),
    before=data_directory,
)


# Our own example, which speaks the protocol itself.


def release(place, program):
    """The versions of one of our examples: one program with different stamps."""
    versions = {}
    for version, fault in (("A", None), ("B", None), ("bad", "unhealthy")):
        path = place.write(f"version-{version}/{program.name}", "", executable=True)
        lines = [f"version={version}"] + ([f"fault={fault}"] if fault else [])
        stamp = "\n#release-stamp\n{}\n#end-of-release-stamp\n".format("\n".join(lines))
        path.write_bytes(program.read_bytes() + stamp.encode())
        versions[version] = path
    return versions


def s3_versions(place, how):
    options = ["--access-key", "workload", "--secret-key", "workload-secret", str(place.dir / "data")]
    place.facts["args"] = options if how == "handoff" else ["--listen", place.address, *options]
    return release(place, place.facts["example"])


EXAMPLE_S3 = Server(
    "examples/s3",
    "Rust",
    ("boto3",),
    s3_versions,
    s3_loads("workload", "workload-secret"),
    by_owner("/"),
    before=data_directory,
    example="s3-server",
    listener="s3",
)


def mcp_versions(place, how):
    place.facts["args"] = [] if how == "handoff" else ["--listen", place.address]
    return release(place, place.facts["example"])


EXAMPLE_MCP = Server(
    "examples/mcp",
    "Rust",
    ("python-mcp",),
    mcp_versions,
    mcp_loads("--tools", "example"),
    by_owner("/healthz"),
    probe=("/healthz", 200),
    example="mcp-server",
    listener="mcp",
)


# MCP.


def everything_versions(place, _):
    line = f"node {place.installed.everything} streamableHttp"
    good = {version: place.script(version, line, PORT=place.port) for version in "AB"}
    return good | {"bad": place.script("bad", DIES)}


EVERYTHING = Server(
    "MCP server-everything",
    "JavaScript",
    ("everything", "python-mcp"),
    everything_versions,
    mcp_loads("--tools", "everything"),
    by_owner("/mcp"),
    probe=("/mcp", 400),
    grace="5s",
)


def python_versions(command, **environment):
    def versions(place, how):
        line = command(place, how)
        environment.update(PYTHONPATH=SERVERS, PYTHONDONTWRITEBYTECODE=1)
        good = {version: place.script(version, line, **environment) for version in "AB"}
        return good | {"bad": place.script("bad", line, WORKLOAD_BAD="answers", **environment)}

    return versions


def uvicorn(place, how):
    where = "--fd 3" if how == "listen-fds" else f"--host 127.0.0.1 --port {place.port}"
    return f"{place.installed.uvicorn} mcp_server:app --log-level warning {where}"


def gunicorn(place, how):
    # With LISTEN_FDS in its environment it takes those, and no address.
    where = "" if how == "listen-fds" else f"--bind {place.address}"
    return f"{place.installed.gunicorn} mcp_server:app -k asgi -w 2 --log-level warning --graceful-timeout 10 {where}"


UVICORN = Server(
    "Python mcp, uvicorn",
    "Python",
    ("python-mcp",),
    python_versions(uvicorn),
    mcp_loads(),
    by_page("/version"),
    probe=("/version", 200),
    grace="5s",
)

GUNICORN = Server(
    "Python mcp, gunicorn",
    "Python",
    ("python-mcp",),
    python_versions(gunicorn, WORKLOAD_STATELESS=1),
    mcp_loads(),
    by_page("/version"),
    probe=("/version", 200),
    grace="5s",
)


# nginx.

NGINX_CONF = """daemon off;
worker_processes 2;
pid {dir}/nginx-{version}.pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {dir}/tmp; proxy_temp_path {dir}/tmp; fastcgi_temp_path {dir}/tmp;
  uwsgi_temp_path {dir}/tmp; scgi_temp_path {dir}/tmp;
  server {{
    listen {address};
    location / {{ add_header X-Version {version} always; return {status} "hello from nginx\\n"; }}
  }}
}}
"""


def nginx_versions(place, _):
    versions = {}
    for version, status in (("A", 200), ("B", 200), ("bad", 500)):
        text = NGINX_CONF.format(dir=place.dir, version=version, address=place.address, status=status)
        conf = place.write(f"version-{version}/nginx.conf", text)
        line = f"{place.installed.nginx} -p {place.dir} -c {conf} -e stderr"
        versions[version] = place.script(version, line)
    return versions


NGINX = Server(
    "nginx",
    "C",
    ("nginx", "python-mcp"),
    nginx_versions,
    lambda place: {"raw sockets": python_load(place, "http_load.py", "--body", "hello from nginx")},
    by_page("/"),
    probe=("/", 200),
    # It drains at SIGQUIT; SIGTERM is its fast end.
    stop_signal="SIGQUIT",
)

ROWS = [
    Row("seaweedfs-inject", WEED, "inject", "overlap"),
    Row("s3s-fs-inject", S3S_FS, "inject", "exclusive"),
    Row("s3rver-inject", S3RVER, "inject", "exclusive"),
    Row("everything-inject", EVERYTHING, "inject", "overlap", quick=True),
    Row("uvicorn-inject", UVICORN, "inject", "overlap"),
    Row("uvicorn-listen-fds", UVICORN, "listen-fds", "overlap", quick=True),
    Row("gunicorn-listen-fds", GUNICORN, "listen-fds", "overlap", quick=True),
    Row("gunicorn-inject", GUNICORN, "inject", "overlap"),
    Row("example-s3", EXAMPLE_S3, "handoff", "exclusive"),
    Row("example-mcp", EXAMPLE_MCP, "handoff", "overlap"),
    Row("nginx-inject", NGINX, "inject", "overlap", quick=True),
    Row("redis-aof", REDIS_AOF, "inject", "exclusive", ends_kept=True),
    Row("redis-rdb", REDIS_RDB, "inject", "exclusive", ends_kept=True),
    Row("memcached", MEMCACHED, "inject", "exclusive", ends_kept=True),
    Row("postgresql", POSTGRES, "inject", "exclusive", ends_kept=True),
    Row("java", JAVA, "inject", "exclusive", ends_kept=True),
    Row("node-cluster", CLUSTER, "inject", "exclusive", ends_kept=True),
]
