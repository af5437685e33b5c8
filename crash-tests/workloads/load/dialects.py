"""How three stores are asked, over one socket each: a greeting, a write, a read. Nothing is repeated, and nothing is hidden."""

import struct

from tally import Ended


class NotReady(Exception):
    """The server accepts already and says that it is not ready yet."""


class Refused(Exception):
    """The server answered that it does not do it."""


class Reader:
    """What comes in over a socket."""

    def __init__(self, sock):
        self.sock, self.rest = sock, b""

    def line(self):
        while b"\r\n" not in self.rest:
            self._more()
        line, _, self.rest = self.rest.partition(b"\r\n")
        return line

    def exactly(self, count):
        while len(self.rest) < count:
            self._more()
        got, self.rest = self.rest[:count], self.rest[count:]
        return got

    def _more(self):
        got = self.sock.recv(65536)
        if not got:
            raise Ended("ended before the answer" if not self.rest else "ended in the answer")
        self.rest += got


class Redis:
    """RESP2: https://redis.io/docs/latest/develop/reference/protocol-spec/"""

    def __init__(self, sock):
        self.sock, self.reader = sock, Reader(sock)

    def put(self, key, value):
        if self._ask("SET", key, value) != b"OK":
            raise Refused("SET was not answered by OK")

    def get(self, key):
        found = self._ask("GET", key)
        return None if found is None else found.decode()

    def _ask(self, *words):
        parts = [f"*{len(words)}\r\n"] + [f"${len(word)}\r\n{word}\r\n" for word in words]
        self.sock.sendall("".join(parts).encode())
        line = self.reader.line()
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise (NotReady if rest.startswith(b"LOADING") else Refused)(rest.decode())
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.reader.exactly(size + 2)[:-2]
        return rest


class Memcached:
    """The text protocol: protocol.txt of memcached."""

    def __init__(self, sock):
        self.sock, self.reader = sock, Reader(sock)

    def put(self, key, value):
        self.sock.sendall(f"set {key} 0 0 {len(value)}\r\n{value}\r\n".encode())
        answer = self.reader.line()
        if answer != b"STORED":
            raise Refused(answer.decode())

    def get(self, key):
        self.sock.sendall(f"get {key}\r\n".encode())
        line = self.reader.line()
        if line == b"END":
            return None
        value = self.reader.exactly(int(line.split()[3]) + 2)[:-2]
        if self.reader.line() != b"END":
            raise Refused("the answer to get does not end with END")
        return value.decode()


class Postgres:
    """Version 3 of the protocol, as user postgres without a password: the chapter "Frontend/Backend Protocol" of its manual."""

    # SQLSTATE of "the database system is starting up".
    STARTING = "57P03"

    def __init__(self, sock):
        self.sock, self.reader = sock, Reader(sock)
        words = b"user\0postgres\0database\0postgres\0\0"
        sock.sendall(struct.pack("!ii", 8 + len(words), 196608) + words)
        self._until_ready()

    def put(self, key, value):
        self._query(f"INSERT INTO workload VALUES ('{key}', '{value}')")

    def get(self, key):
        rows = self._query(f"SELECT value FROM workload WHERE key = '{key}'")
        return rows[0] if rows else None

    def make_table(self):
        self._query("CREATE TABLE IF NOT EXISTS workload (key text PRIMARY KEY, value text)")

    def _query(self, text):
        words = text.encode() + b"\0"
        self.sock.sendall(b"Q" + struct.pack("!i", 4 + len(words)) + words)
        return self._until_ready()

    def _until_ready(self):
        rows, error = [], None
        while True:
            kind, size = struct.unpack("!ci", self.reader.exactly(5))
            body = self.reader.exactly(size - 4)
            if kind == b"D":
                (length,) = struct.unpack("!i", body[2:6])
                rows.append(body[6 : 6 + length].decode())
            elif kind == b"E":
                fields = {part[:1].decode(): part[1:].decode() for part in body.split(b"\0") if part}
                error = (fields.get("C"), fields.get("M"), fields.get("S"))
                # After a fatal one the connection ends without being ready again.
                if error[2] in ("FATAL", "PANIC"):
                    raise (NotReady if error[0] == self.STARTING else Refused)(f"{error[0]}: {error[1]}")
            elif kind == b"Z":
                if error:
                    raise Refused(f"{error[0]}: {error[1]}")
                return rows


DIALECTS = {"redis": Redis, "memcached": Memcached, "postgres": Postgres}
