/** The machine, compared with the complete tables of the protocol. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Process } from "../lib/machine.js";

const GOLDEN = new URL("../../../protocol/tests/golden/", import.meta.url);
const ID = Buffer.alloc(16, 1);
const OTHER = Buffer.alloc(16, 2);
const MESSAGES = {
  Prepare: { graceMs: 30, leaseMs: 35 },
  Seal: { leaseMs: 5, cut: false },
  Begin: {},
  Commit: {},
  Abort: {},
  Resume: {},
  State: { type: "TakeOver", format: 3, length: 0 },
  Grant: { endMs: 45 },
};
const HANDED = { type: "HandOver", format: 3, length: 0 };

/** A process in the described state. */
function processIn(state) {
  const machine = new Process(ID);
  machine.state = state.split(/[ ,]/)[0];
  machine.leaseMs = 5;
  for (const [, flag, value] of state.matchAll(/(\w+):? (true|false)/g)) machine[flag] = value === "true";
  return machine;
}

/** Formats a state like the tables. */
function describe(machine) {
  const flags = {
    Starting: ["asked", "done"],
    Draining: ["drained"],
    Sealing: ["resume", "leave"],
    Reopening: ["leave"],
  }[machine.state];
  const words = flags ? ` { ${flags.map((flag) => `${flag}: ${machine[flag]}`).join(", ")} }` : "";
  return `${machine.state}${words}, connected ${machine.connected}`;
}

/** Formats an action like the tables. */
function inWords([name, value]) {
  const state = ({ format, length }) => `State { format: ${format}, length: ${length} }`;
  const body = {
    Ready: (it) => `Ready { healthy: ${it.healthy}, reason: "${it.reason}" }`,
    SealFailed: (it) => `Failed { reason: "${it.reason}" }`,
    ResumeFailed: (it) => `Failed { reason: "${it.reason}" }`,
  };
  const capital = (word) => word[0].toUpperCase() + word.slice(1);
  const words = {
    TakeOver: () => `TakeOver(${state(value)})`,
    Send: () => value.type === "HandOver" ? `Send(id, State(${state(value)}))` : `Send(id, ${value.type}(${body[value.type]?.(value) ?? "Done"}))`,
    AnswerAdopt: () => `Adopted(id, ${capital(value)})`,
    ArmLease: () => `ArmLease { lease_ms: ${value} }`,
    Drain: () => `Drain { grace_ms: ${value.graceMs}, refused: ${value.refused} }`,
    Seal: () => `Seal { cut: ${value} }`,
    Exit: () => `Exit { code: ${value} }`,
  };
  return words[name]?.() ?? name;
}

/** The actions of the machine, and its next state. */
function step(machine, what) {
  const before = describe(machine);
  const type = what.replace(" of another handoff", "");
  let actions;
  if (what === "adopted") actions = machine.adopt(ID);
  else if (what === "hand over") actions = machine.handOver(HANDED);
  else if (type in MESSAGES) actions = machine.message(what === type ? ID : OTHER, { type, ...MESSAGES[type] });
  else actions = machine.happen(what, "why");
  const after = describe(machine);
  return [...(after === before ? [] : [`[${after}]`]), ...actions.map(inWords)].join(" ");
}

test("every line of the table is what the machine does", () => {
  let seen = 0;
  const text = readFileSync(new URL("process_overlap.txt", GOLDEN), "utf8");
  for (const block of text.trim().split("\n\n")) {
    const [state, ...lines] = block.split("\n");
    for (const line of lines.map((line) => line.trim())) {
      const [what, expected] = line.split(" -> ");
      const events = line.startsWith("nothing:") ? line.slice(8).split(",").map((it) => it.trim()) : [what];
      for (const event of events.filter(Boolean)) {
        assert.equal(step(processIn(state), event), expected ?? "", `${state}: ${event}`);
        seen += 1;
      }
    }
  }
  assert.ok(seen > 500, `${seen}`);
});

test("messages that are never right are a breach, and a Prepare begins a new handoff", () => {
  for (const type of ["Welcome", "Begin", "Adopt"]) {
    assert.deepEqual(processIn("Serving, connected true").message(ID, { type }), [["HangUp"]]);
  }
  const machine = processIn("Serving, connected true");
  machine.message(OTHER, { type: "Prepare", ...MESSAGES.Prepare });
  assert.deepEqual(machine.handoff, OTHER);
  assert.deepEqual(machine.message(ID, { type: "Commit" })[0], ["HangUp"]);
});

test("signs of life are due while the supervisor waits", () => {
  const machine = processIn("Serving, connected true");
  const due = [machine.works];
  machine.message(ID, { type: "Prepare", ...MESSAGES.Prepare });
  due.push(machine.works);
  machine.happen("drain done");
  due.push(machine.works);
  machine.message(ID, { type: "Seal", ...MESSAGES.Seal });
  due.push(machine.works);
  machine.happen("seal done");
  due.push(machine.works);
  machine.message(ID, { type: "Resume" });
  due.push(machine.works);
  assert.deepEqual(due, [false, true, false, true, false, true]);
});
