"""The loads of a row, from their start to the sum of what they say."""

import json
import subprocess
import time

# As the loads tell them. The first four are of a connection, a new one or one that had carried requests before.
OF_CONNECTION = ("refused", "reset", "cut", "timeout")
OF_ANSWER = ("error_status", "wrong", "lost")
FAILURES = OF_CONNECTION + OF_ANSWER
SUMMED = (
    "requests",
    *FAILURES,
    *(f"{kind}_{name}" for kind in ("new", "kept") for name in OF_CONNECTION),
    "idle_closed",
    "idle_raced",
    "not_ready",
    "sessions",
    "sessions_lost",
    "streams",
    "streams_ended",
    "slow_calls",
)


class Loads:
    """Started together, and ended together."""

    def __init__(self, place, wanted):
        self.place, self._started = place, {}
        for name, (argv, environment) in wanted.items():
            log = f"load-{name.replace(' ', '-')}"
            process = place.start(log, argv, env=environment, stdout=subprocess.PIPE)
            self._started[name] = process
        # Until all have begun to work.
        time.sleep(2.5)

    def end(self):
        """What each says at its end."""
        said = {}
        for process in self._started.values():
            if process.poll() is None:
                process.terminate()
        for name, process in self._started.items():
            try:
                output, _ = process.communicate(timeout=90)
                said[name] = json.loads(output.splitlines()[-1])
            except (subprocess.TimeoutExpired, ValueError, IndexError):
                said[name] = {
                    "requests": 0,
                    "wrong": 1,
                    "first": f"the load ended without its line: see {self.place.dir}",
                }
            self.place.end(process)
        return said


def summed(said):
    """The sum of what loads say, and of what the newcomers saw."""
    total = {name: sum(each.get(name, 0) for each in said.values()) for name in SUMMED}
    total["first"] = next((each["first"] for each in said.values() if each.get("first")), None)
    return total


def failures(total, ends_kept=False):
    """How many requests failed; with `ends_kept`, without those on connections that had carried requests before."""
    if not ends_kept:
        return sum(total[name] for name in FAILURES)
    return sum(total[f"new_{name}"] for name in OF_CONNECTION) + total["wrong"] + total["lost"]


def told(said, moments):
    """Each failure that a load tells one by one, with where in an upgrade it came: `moments` are their begins and ends."""
    for load, each in said.items():
        for failure in each.get("failures", ()):
            during = [number for number, (began, _) in enumerate(moments) if began <= failure["at"]]
            where = {}
            if during:
                began, ended = moments[during[-1]]
                where = {"upgrade": during[-1] + 1, "after_s": failure["at"] - began, "after_end_s": failure["at"] - ended}
            yield {"load": load, **failure, **{key: round(value, 3) for key, value in where.items()}}
