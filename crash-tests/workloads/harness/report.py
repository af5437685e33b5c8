"""What came out, for people and for programs."""

import json
from dataclasses import dataclass, field

from .loads import OF_ANSWER, OF_CONNECTION


@dataclass
class Result:
    """Of one row, run in one way."""

    row: object
    how: str
    upgrades: int
    rolled_back: int
    said: dict
    total: dict
    gaps: list
    # As the daemon tells it, of each upgrade.
    took_us: list = field(default_factory=list)
    accept_gap_us: list = field(default_factory=list)
    # Each failure that the loads tell one by one, and where in an upgrade it came.
    told: list = field(default_factory=list)
    # What was not as it has to be.
    problems: list = field(default_factory=list)

    def as_json(self):
        return {
            "row": self.row.name,
            "server": self.row.server.name,
            "language": self.row.server.language,
            "adapter": self.row.adapter if self.how == "handoff" else None,
            "mode": self.row.mode if self.how == "handoff" else None,
            "how": self.how,
            "upgrades": self.upgrades,
            "rolled_back": self.rolled_back,
            **self.total,
            "gap_p50_ms": milliseconds(middle(self.gaps)),
            "gap_max_ms": milliseconds(max(self.gaps, default=None)),
            "took_us": self.took_us,
            "accept_gap_us": self.accept_gap_us,
            "told": self.told,
            "loads": self.said,
            "problems": self.problems,
        }


def middle(values):
    return sorted(values)[(len(values) - 1) // 2] if values else None


def milliseconds(seconds):
    return None if seconds is None else round(seconds * 1000, 1)


COLUMNS = (
    ("server", "server"),
    ("language", "language"),
    ("adapter", "adapter"),
    ("mode", "mode"),
    ("upgrades", "upgrades"),
    ("rolled back", "rolled_back"),
    ("requests", "requests"),
    ("refused", "new_refused"),
    ("reset", "new_reset"),
    ("cut", "new_cut"),
    ("no answer", "new_timeout"),
    ("cut in use", "in_use"),
    ("other failures", "other"),
    ("not ready", "not_ready"),
    ("ended idle", "idle"),
    ("sessions lost", "sessions"),
    ("gap p50 / max ms", "gap"),
)


def table(results):
    """As Markdown."""
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for result in results:
        known = result.as_json()
        known["adapter"] = known["adapter"] or result.how
        known["mode"] = known["mode"] or ""
        known["in_use"] = sum(known[f"kept_{name}"] for name in OF_CONNECTION)
        known["other"] = sum(known[name] for name in OF_ANSWER)
        known["idle"] = f"{known['idle_closed']} + {known['idle_raced']}"
        known["sessions"] = f"{known['sessions_lost']} of {known['sessions']}" if known["sessions"] else ""
        known["gap"] = f"{known['gap_p50_ms']} / {known['gap_max_ms']}"
        lines.append("| " + " | ".join(number(known[key]) for _, key in COLUMNS) + " |")
    return "\n".join(lines)


def number(value):
    return f"{value:,}" if isinstance(value, int) else str(value)


def as_json(results):
    return json.dumps([result.as_json() for result in results], indent=1)
