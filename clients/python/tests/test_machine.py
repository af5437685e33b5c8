"""The machine, compared with the complete tables of the protocol."""

from __future__ import annotations

import re
import unittest
import uuid
from typing import Dict, Iterator, List, Tuple

from handoff_service import machine as mc
from handoff_service import message as m

from .golden import GOLDEN

ID, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
MESSAGES: Dict[str, m.Message] = {
    "Prepare": m.Prepare(30, 35),
    "Seal": m.Seal(5, False),
    "Begin": m.Begin(),
    "Commit": m.Commit(),
    "Abort": m.Abort(),
    "Resume": m.Resume(),
    "State": m.TakeOver(3, 0, 0, b""),
    "Grant": m.Grant(45),
}
EVENTS = {event.value: event for event in mc.Event}


def tables(name: str) -> Iterator[Tuple[str, List[str]]]:
    """The states of a table, each with its lines."""
    for block in (GOLDEN / name).read_text().strip().split("\n\n"):
        state, *lines = block.splitlines()
        yield state, [line.strip() for line in lines]


def process_in(overlap: bool, state: str) -> mc.Process:
    """A process in the described state."""
    process = mc.Process(ID, overlap)
    process.state = re.split(r"[ ,]", state)[0]
    for flag, value in re.findall(r"(\w+):? (true|false)", state):
        setattr(process, flag, value == "true")
    process._lease_ms = 5
    return process


def serving(overlap: bool, connected: bool = True) -> mc.Process:
    return process_in(overlap, f"Serving, connected {str(connected).lower()}")


def in_words(action: mc.Action) -> str:
    """Formats an action like the tables."""
    if isinstance(action, mc.Do):
        return action.value
    if isinstance(action, mc.Send):
        message = action.message
        if isinstance(message, m.HandOver):
            return f"Send(id, State(State {{ format: {message.format}, length: {message.length} }}))"
        if isinstance(message, m.Ready):
            healthy = "true" if message.healthy else "false"
            return f'Send(id, Ready(Ready {{ healthy: {healthy}, reason: "{message.reason}" }}))'
        name = type(message).__name__
        if isinstance(message, (m.SealFailed, m.ResumeFailed)):
            return f'Send(id, {name}(Failed {{ reason: "{message.reason}" }}))'
        return f"Send(id, {name}(Done))"
    if isinstance(action, (mc.KeepState, mc.TakeOver)):
        return f"{type(action).__name__}(State {{ format: {action.message.format}, length: {action.message.length} }})"
    if isinstance(action, mc.AnswerAdopt):
        return f"Adopted(id, {action.stage.name.capitalize()})"
    if isinstance(action, mc.ArmLease):
        return f"ArmLease {{ lease_ms: {action.ms} }}"
    if isinstance(action, mc.RunSeal):
        return f"Seal {{ cut: {'true' if action.cut else 'false'} }}"
    if isinstance(action, mc.Exit):
        return f"Exit {{ code: {action.code} }}"
    return f"Drain {{ grace_ms: {action.grace_ms}, refused: {'true' if action.refused else 'false'} }}"


def step(machine: mc.Process, what: str) -> str:
    """The actions of the machine, and its next state."""
    before = mc.describe(machine)
    name = what.partition(" of another handoff")[0]
    if what == "adopted":
        actions = machine.adopt(ID)
    elif what == "hand over":
        actions = machine.hand_over(m.HandOver(3, 0, 0, b""))
    elif name in MESSAGES:
        actions = machine.message(OTHER if what.endswith("handoff") else ID, MESSAGES[name])
    else:
        actions = machine.happen(EVENTS[what], "why")
    words = [in_words(action) for action in actions]
    after = mc.describe(machine)
    return " ".join(([] if after == before else [f"[{after}]"]) + words)


class Tables(unittest.TestCase):
    def test_every_line_of_every_table_is_what_the_machine_does(self) -> None:
        seen = 0
        for mode in ("exclusive", "overlap"):
            for state, lines in tables(f"process_{mode}.txt"):
                for line in lines:
                    seen += self.check(mode == "overlap", state, line)
        self.assertGreater(seen, 1_000)

    def check(self, overlap: bool, state: str, line: str) -> int:
        what, _, expected = line.partition(" -> ")
        if line.startswith("nothing:"):
            events = [event for event in line[len("nothing:") :].strip().split(", ") if event]
            pairs = [(event, "") for event in events]
        else:
            pairs = [(what, expected)]
        for what, expected in pairs:
            with self.subTest(overlap=overlap, state=state, event=what):
                self.assertEqual(step(process_in(overlap, state), what), expected)
        return len(pairs)


class Ids(unittest.TestCase):
    def test_a_prepare_begins_a_new_handoff_and_the_answers_carry_its_id(self) -> None:
        machine = serving(True)
        machine.message(OTHER, m.Prepare(1, 1))
        self.assertEqual(machine.handoff, OTHER)
        self.assertIn(mc.Do.HANG_UP, machine.message(ID, m.Commit()))

    def test_messages_that_are_never_right_are_a_breach(self) -> None:
        welcome = m.Welcome(1, "s", 1, m.Mode.OVERLAP, (), 1)
        for message in (welcome, m.Begin(), m.Adopt(1, 1, 1)):
            self.assertEqual(serving(True).message(ID, message), [mc.Do.HANG_UP])

    def test_the_id_of_another_supervisor_takes_the_place_of_the_one_before(self) -> None:
        machine = serving(True, connected=False)
        self.assertEqual(machine.adopt(OTHER), [mc.AnswerAdopt(m.Stage.SERVING)])
        self.assertEqual(machine.message(OTHER, m.Resume()), [])
        self.assertTrue(machine.connected)


class Working(unittest.TestCase):
    def test_signs_of_life_are_due_while_the_supervisor_waits(self) -> None:
        machine = serving(False)
        due = [machine.works]
        machine.message(ID, m.Prepare(1, 1))
        due.append(machine.works)
        machine.happen(mc.Event.DRAIN_DONE)
        due.append(machine.works)
        machine.message(ID, m.Seal(1, False))
        due.append(machine.works)
        machine.happen(mc.Event.SEAL_DONE)
        due.append(machine.works)
        machine.message(ID, m.Resume())
        due.append(machine.works)
        self.assertEqual(due, [False, True, False, True, False, True])
