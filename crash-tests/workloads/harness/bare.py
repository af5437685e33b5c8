"""A server without a supervisor: undisturbed, where nothing may fail, and restarted, where clients must notice."""

import signal
import time

from .gap import Newcomers
from .loads import Loads, failures, summed
from .report import Result


def run_bare(row, place, restarts, seconds):
    """The two results: undisturbed, and a plain restart. A restart is: stop signal, wait for the end, start."""
    row.server.before(place)
    versions = row.server.versions(place, "bind")
    server = start(row, place, versions["A"])
    yield _undisturbed(row, place, seconds)
    yield _restarted(row, place, versions, server, restarts)


def start(row, place, program):
    process = place.start("server", [program, *place.facts.get("args", [])], env=row.server.env, cwd=place.dir)
    place.wait_until(f"{row.server.name} listens", place.accepts)
    return process


def _undisturbed(row, place, seconds):
    loads, newcomers = Loads(place, row.server.loads(place)), Newcomers(place, row.server.question)
    began = time.monotonic()
    time.sleep(seconds)
    gap = newcomers.longest_gap(began, time.monotonic())
    result = _result(row, "undisturbed", loads, newcomers, [gap], 0)
    result.problems += [f"{failures(result.total)} failures without any upgrade"] if failures(result.total) else []
    return result


def _restarted(row, place, versions, server, restarts):
    loads, newcomers = Loads(place, row.server.loads(place)), Newcomers(place, row.server.question)
    gaps, wrong = [], []
    for number in range(restarts):
        version = "BA"[number % 2]
        began = time.monotonic()
        # A service manager would kill what has not ended after a while.
        place.end(server, signal.Signals[row.server.stop_signal], patience=15.0)
        server = start(row, place, versions[version])
        time.sleep(1.0)
        gaps.append(newcomers.longest_gap(began, time.monotonic()))
        served = row.server.version(place)
        wrong += [f"after restart {number + 1} version {served} answers, not {version}"] if served != version else []
    result = _result(row, "plain restart", loads, newcomers, gaps, restarts)
    result.problems += wrong
    if not failures(result.total):
        result.problems.append("no client has noticed a plain restart: the loads see nothing")
    return result


def _result(row, how, loads, newcomers, gaps, upgrades):
    said = loads.end()
    newcomers.close()
    said["newcomers"] = newcomers.said()
    return Result(row, how, upgrades=upgrades, rolled_back=0, said=said, total=summed(said), gaps=gaps)
