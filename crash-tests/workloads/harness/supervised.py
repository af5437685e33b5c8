"""A server under `handoff daemon`: upgraded repeatedly under load, once to a broken version."""

import json
import subprocess
import time

from .gap import Newcomers
from .loads import Loads, failures, summed, told
from .place import clean_environment
from .report import Result

# Exit codes of `handoff upgrade`.
COMMITTED, ROLLED_BACK, BUSY = 0, 4, 5


def run_supervised(row, place, handoff, upgrades, pause):
    """The result of one row."""
    row.server.before(place)
    versions = row.server.versions(place, row.adapter)
    daemon = Daemon(row, place, handoff, versions["A"])
    loads, newcomers = Loads(place, row.server.loads(place)), Newcomers(place, row.server.question)
    gaps, took, accept_gaps, moments, problems = [], [], [], [], []
    counted = {COMMITTED: 0, ROLLED_BACK: 0}
    current = "A"
    for number in range(upgrades):
        bad = number == upgrades // 2
        target = "bad" if bad else "BA"["AB".index(current)]
        began, asked = time.monotonic(), time.time()
        code, outcome = daemon.upgrade(versions[target])
        moments.append((asked, time.time()))
        time.sleep(pause)
        gaps.append(newcomers.longest_gap(began, time.monotonic()))
        if code == COMMITTED and not bad:
            current = target
        if code in counted:
            counted[code] += 1
        if code != (ROLLED_BACK if bad else COMMITTED):
            why = outcome.get("reason") or outcome.get("outcome")
            problems.append(f"upgrade {number + 1} to {target} ended with exit code {code}: {why}")
        took.append(outcome.get("took_us"))
        accept_gaps.append(outcome.get("accept_gap_us"))
        served = row.server.version(place)
        if served != current:
            problems.append(f"after upgrade {number + 1} version {served} answers, not {current}")
    said = loads.end()
    newcomers.close()
    said["newcomers"] = newcomers.said()
    problems += daemon.stop()
    total = summed(said)
    failed = failures(total, row.ends_kept)
    if failed:
        problems.append(f"{failed} requests failed")
    return Result(
        row,
        "handoff",
        upgrades=counted[COMMITTED],
        rolled_back=counted[ROLLED_BACK],
        said=said,
        total=total,
        gaps=gaps,
        took_us=took,
        accept_gap_us=accept_gaps,
        told=list(told(said, moments)),
        problems=problems,
    )


class Daemon:
    """`handoff daemon` with directories of its own and one service, which serves when this is made."""

    def __init__(self, row, place, handoff, first):
        self.place, self.handoff = place, handoff
        # What runs outside, as the backend of a gateway.
        self.others = place.processes()
        self.directories = {
            "HANDOFF_CONFIG_DIR": str(place.dir / "etc"),
            "HANDOFF_STATE_DIR": str(place.dir / "state"),
            "HANDOFF_RUNTIME_DIR": str(place.dir / "run"),
            "NO_COLOR": "1",
        }
        place.write("etc/services/subject.toml", service_file(row, place, first))
        self.process = place.start("daemon", [handoff, "daemon"], env=self.directories, cwd=place.dir)
        place.wait_until(f"{row.server.name} serves", self.serves, 60.0)

    def ask(self, *words):
        environment = clean_environment(self.place.dir) | self.directories
        return subprocess.run([self.handoff, *words], env=environment, capture_output=True, text=True, timeout=600)

    def serves(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the daemon ended with {self.process.returncode}: see {self.place.dir}/daemon.log")
        answer = self.ask("status", "subject", "--json")
        return answer.returncode == 0 and '"state":"serving"' in answer.stdout.replace(" ", "")

    def upgrade(self, binary):
        until = time.monotonic() + 60.0
        answer = self.ask("upgrade", "subject", "--binary", str(binary), "--json")
        # The process before the last may still be on its way out.
        while answer.returncode == BUSY and time.monotonic() < until:
            time.sleep(0.2)
            answer = self.ask("upgrade", "subject", "--binary", str(binary), "--json")
        lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
        outcome = json.loads(lines[-1]) if lines else {"reason": answer.stderr.strip()}
        return answer.returncode, outcome.get("outcome", outcome)

    def stop(self):
        """What was not in order at the end."""
        code = self.place.end(self.process, patience=90.0)
        left = [pid for pid in self.place.processes() if pid not in self.others]
        problems = [f"the daemon ended with exit code {code}"] if code != 0 else []
        return problems + ([f"{len(left)} processes were left"] if left else [])


def service_file(row, place, first):
    """As a user would write it."""
    lines = [
        f'binary = "{first}"',
        "store = false",
        f'mode = "{row.mode}"',
        f'adapter = "{row.adapter}"',
        f'drain_grace = "{row.server.grace}"',
    ]
    if "args" in place.facts:
        lines.append(f"args = {json.dumps(place.facts['args'])}")
    lines += row.server.keys
    if row.adapter != "handoff":
        lines.append(f'stop_signal = "{row.server.stop_signal}"')
    lines += ["", "[env]", f'WORKLOAD_PLACE = "{place.dir}"', f'HOME = "{place.dir}"']
    lines += [f'{name} = "{value}"' for name, value in row.server.env.items()]
    lines += ["", "[listen]", f'{row.server.listener} = "{place.address}"']
    if row.adapter != "handoff":
        lines += ["", "[probe]"]
        if row.server.probe:
            path, status = row.server.probe
            lines += [f'http = "{path}"'] + ([f"status = {status}"] if status != 200 else [])
        else:
            lines += ["tcp = true"]
    return "\n".join(lines) + "\n"
