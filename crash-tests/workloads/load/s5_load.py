"""Copies directories to the server and back with s5cmd, which repeats nothing, and compares every byte."""

import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

from tally import Stop, Tally, arguments, run_threads

SIZES = (1, 900, 65_536, 200_000)
FILES = 12


def main():
    given = arguments(
        __doc__.splitlines()[0],
        bucket=("workload-s5", "made if it is not there"),
        key=("workload", "access key"),
        secret=("workload-secret", "secret key"),
        s5cmd=("s5cmd", "the program"),
        clients=(1, "how many at a time"),
    )
    stop, tally = Stop(given.seconds), Tally()
    runner = Runner(given, tally)
    runner.run("mb", f"s3://{given.bucket}", count=False)
    run_threads(
        [lambda n=n: rounds(runner, given, stop, tally, n) for n in range(given.clients)], stop, tally, give_up=40.0
    )


class Runner:
    """Runs the program, and counts what it says of each object."""

    def __init__(self, given, tally):
        host, port = given.address
        self.tally = tally
        self.command = [
            given.s5cmd,
            "--json",
            "--retry-count",
            "0",
            "--numworkers",
            "4",
            "--endpoint-url",
            f"http://{host}:{port}",
        ]
        self.environment = os.environ | {
            "AWS_ACCESS_KEY_ID": given.key,
            "AWS_SECRET_ACCESS_KEY": given.secret,
            "AWS_REGION": "us-east-1",
        }

    def run(self, *arguments, count=True):
        """Says whether everything was done."""
        began = time.monotonic()
        done = subprocess.run(
            [*self.command, *arguments], env=self.environment, capture_output=True, text=True, timeout=60
        )
        each = time.monotonic() - began
        lines = [json.loads(line) for line in (done.stdout + done.stderr).splitlines() if line.startswith("{")]
        bad = [line["error"] for line in lines if "error" in line]
        if count:
            for line in lines:
                if line.get("success"):
                    self.tally.ok(each / max(1, len(lines)))
            for error in bad:
                self.tally.failed(kind_of(error), error)
            if done.returncode != 0 and not bad:
                self.tally.failed("wrong", f"s5cmd ended with {done.returncode}: {done.stderr[:200]}")
        return done.returncode == 0


def kind_of(error):
    for words, kind in (
        ("connection refused", "refused"),
        ("connection reset", "reset"),
        ("broken pipe", "reset"),
        ("timeout", "timeout"),
        ("eof", "cut"),
        ("server closed", "cut"),
        ("closed network", "cut"),
    ):
        if words in error.lower():
            return kind
    return "error_status"


def rounds(runner, given, stop, tally, number):
    chance = random.Random(1000 + number)
    with tempfile.TemporaryDirectory() as directory:
        there, back = Path(directory, "there"), Path(directory, "back")
        there.mkdir()
        back.mkdir()
        while not stop.is_set():
            for name in range(FILES):
                (there / str(name)).write_bytes(chance.randbytes(chance.choice(SIZES)))
                (back / str(name)).unlink(missing_ok=True)
            remote = f"s3://{given.bucket}/client-{number}/"
            sent = runner.run("cp", f"{there}/", remote)
            got = runner.run("cp", f"{remote}*", f"{back}/")
            if sent and got:
                compare(there, back, tally)
            stop.wait(0.1)


def compare(there, back, tally):
    for path in there.iterdir():
        copy = back / path.name
        if not copy.exists():
            tally.failed("lost", f"{path.name} did not come back")
        elif copy.read_bytes() != path.read_bytes():
            tally.failed("wrong", f"{path.name} came back with other bytes")


if __name__ == "__main__":
    main()
