/** The driver with a simulated channel, and the socket for a new supervisor. */

import assert from "node:assert";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { test } from "node:test";

import { Driver } from "../lib/driver.js";

const ID = Buffer.alloc(16, 7);

/** A driver of a serving process, and the messages that it has sent. */
function serving(handlers) {
  const sent = [];
  const channel = {
    version: 2,
    isFlushed: true,
    send: (_handoff, message) => sent.push(message.type),
    close() {},
    onMessage: (_handoff, _message) => {},
    onEnd() {},
  };
  const welcome = { type: "Welcome", service: "s", generation: 1, listeners: [], mode: "overlap", leaseMs: 60_000 };
  const driver = new Driver(channel, null, ID, welcome);
  driver.handlers = handlers;
  const tell = (type, fields = {}) => channel.onMessage(ID, { type, ...fields });
  tell("Prepare", { graceMs: 60_000, leaseMs: 60_000 });
  driver.happen("started");
  tell("Begin");
  driver.happen("opened");
  tell("Commit");
  return { driver, tell, sent };
}

test("the seal comes after a drain that was cancelled", async () => {
  const steps = [];
  let begun = () => {};
  const hasBegun = new Promise((resolve) => (begun = () => resolve(undefined)));
  const { driver, tell } = serving({
    async drain({ signal }) {
      begun();
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
      await new Promise((resolve) => setTimeout(resolve, 50));
      steps.push("drained");
    },
    seal: () => void steps.push("sealed"),
  });
  const finished = driver.finished();
  tell("Prepare", { graceMs: 60_000, leaseMs: 60_000 });
  await hasBegun;
  tell("Seal", { leaseMs: 60_000, cut: true });
  tell("Commit");
  await finished;
  assert.deepStrictEqual(steps, ["drained", "sealed"]);
});

/** In a separate process, because the socket stays open as long as its process lives. */
const OPEN = `
  import fs from "node:fs";
  import net from "node:net";
  import { Entrance } from ${JSON.stringify(new URL("../lib/adoption.js", import.meta.url).href)};
  const at = process.argv[1];
  process.umask = () => { throw new Error("the umask is that of the whole process"); };
  const opened = new Entrance(at);
  try {
    await opened.open();
    const mode = (fs.statSync(at).mode & 0o777).toString(8);
    await new Promise((resolve, reject) => net.connect(at, resolve).once("error", reject));
    opened.remove();
    console.log(mode, fs.existsSync(at));
  } catch (error) {
    console.log(error.message);
  }
  process.exit(0);
`;

test("the way in is private, and the umask stays as it is", () => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "handoff-"));
  const open = () => {
    const script = ["--input-type=module", "-e", OPEN, path.join(directory, "adopt")];
    return execFileSync(process.execPath, script, { encoding: "utf8", timeout: 20_000 }).trim();
  };
  try {
    assert.strictEqual(open(), "600 false");
    fs.chmodSync(directory, 0o755);
    assert.match(open(), /other users can enter/);
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
});
