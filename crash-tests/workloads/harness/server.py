"""What a row of the table is made of."""

from dataclasses import dataclass, field

from . import place as here

LOAD = here.HERE / "load"
SERVERS = here.HERE / "servers"
# What a bad version does: it dies before it listens.
DIES = "sh -c 'echo this version is broken >&2; sleep 0.2; exit 3' --"


def get(path):
    """What a newcomer asks of a web server."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


@dataclass
class Server:
    """A program of others, and how it is made into versions."""

    name: str
    language: str
    # Pieces that must be installed.
    needs: tuple
    # Writes the versions A, B and bad, and gives their paths: (place, how) -> {name: path}. `how` is bind or fd.
    versions: callable
    # What clients do: place -> {name: (argv, environment)}.
    loads: callable
    # Which version answers: place -> name.
    version: callable
    # A path that answers 200 without credentials, and with it the status; None for a probe of the port alone.
    probe: tuple = None
    # What a newcomer asks; without it, for the path of the probe.
    asks: bytes = None
    stop_signal: str = "SIGTERM"
    # What must run before: place -> None.
    before: callable = lambda place: None
    # How long clients may take for what they have begun.
    grace: str = "10s"
    # More lines of the service file, before its tables.
    keys: tuple = ()
    # The program, if it is one of our examples, and what it calls its listener.
    example: str = None
    listener: str = "main"
    env: dict = field(default_factory=dict)

    @property
    def question(self):
        return self.asks or get((self.probe or ("/",))[0])


@dataclass
class Row:
    """A row of the table: a server under an adapter, in a mode."""

    name: str
    server: Server
    adapter: str
    mode: str
    quick: bool = False
    # Whether the program ends the connections that clients keep when it ends, whatever is asked on them at that moment. Then
    # only what happens to new ones is a failure of the row.
    ends_kept: bool = False


def python_load(place, name, *options):
    return [place.installed.python, LOAD / name, place.address, "--seconds", "600", *options], {}
