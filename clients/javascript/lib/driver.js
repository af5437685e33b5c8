/** Drives the machine: talks to the supervisor, sends signs of life, keeps time, and runs the service's code. */

import { performance } from "node:perf_hooks";

import { commonVersion } from "./frame.js";
import { Process } from "./machine.js";
import { KINDS } from "./message.js";
import { pack, unpack } from "./state.js";

/** A longer timer would fire at once in Node. */
const TIMER_MAX = 2 ** 31 - 1;
/** Maximum length of a reason, which must fit into a frame. */
const REASON_MAX = 4000;
/** Maximum length of a version text in characters. The rest is dropped. */
const VERSION_MAX = 128;
/** How long an exit waits for the supervisor to read the last message, in milliseconds. */
const FLUSH_MS = 1000;

/**
 * @typedef {object} Handlers The callbacks of a service. An exception is reported as the reason of the failure.
 * @property {(how: { graceMs: number, signal: AbortSignal }) => unknown} [drain] Keep accepting; ask clients to
 * reconnect; wait for long requests. Return soon after `signal` is aborted: the seal comes after it.
 * @property {(how: { cut: boolean }) => unknown} [seal] Finish what was accepted (you may cut it if `cut`); make
 * everything durable.
 * @property {() => unknown} [resume] Serve as before.
 * @property {(state: import("./state.js").State) => unknown} [takeOver] Process the state that the predecessor hands
 * over, while this process already serves and the predecessor drains and seals. Each state replaces the one before.
 * An exception is written to the log and has no other effect.
 */

export class Driver {
  #channel;
  #entrance;
  #welcome;
  #machine;
  #leaseMs;
  #lease = { at: 0, timer: /** @type {NodeJS.Timeout | undefined} */ (undefined) };
  /** @type {NodeJS.Timeout | undefined} */
  #sign;
  /** @type {AbortController | null} */
  #drain = null;
  #last = Promise.resolve();
  /** @type {((code: number) => void)[]} */
  #waiters = [];
  /** @type {number | null} */
  #code = null;
  #begin = () => {};
  #version = "";
  note = "";
  /** @type {Handlers} */
  handlers = {};
  /** Fulfilled when the service must accept. */
  begun = new Promise((resolve) => (this.#begin = () => resolve(undefined)));

  /**
   * @param {import("./channel.js").Channel} channel
   * @param {import("./adoption.js").Entrance | null} entrance
   * @param {Buffer} handoff
   * @param {import("./message.js").Message} welcome
   */
  constructor(channel, entrance, handoff, welcome) {
    this.#channel = /** @type {import("./channel.js").Channel | null} */ (channel);
    this.#entrance = entrance;
    this.#welcome = welcome;
    this.#leaseMs = welcome.leaseMs;
    this.#machine = new Process(handoff);
    if (entrance) entrance.onAdopt = (...found) => this.#adopt(...found);
    this.#listenTo(channel);
    this.#tend();
  }

  /**
   * Reports an event; see the machine.
   * @param {string} event
   * @param {unknown} [reason]
   */
  happen(event, reason = "") {
    this.#do(this.#machine.happen(event, String(reason).slice(0, REASON_MAX)));
  }

  /**
   * Hands state over, before later events. Version 1 has no recipient for it.
   * @param {number} format
   * @param {Buffer | Uint8Array | string} bytes
   */
  handOver(format, bytes) {
    const message = pack(format, bytes);
    if (this.#channel !== null && this.#channel.version >= 2) this.#do(this.#machine.handOver(message));
  }

  /**
   * Sends the server's version text to this supervisor, and to each later one.
   * @param {string} version
   */
  tellVersion(version) {
    this.#version = version.slice(0, VERSION_MAX);
    this.#sendVersion();
  }

  #sendVersion() {
    if (this.#version === "" || this.#channel === null || this.#channel.version < KINDS.Release.since) return;
    this.#channel.send(this.#machine.handoff, { type: "Release", version: this.#version });
  }

  /** The exit code, when the process must end. While a caller waits for it, that caller ends the process. */
  finished() {
    return new Promise((resolve) => {
      if (this.#code !== null) resolve(this.#code);
      else this.#waiters.push(resolve);
    });
  }

  #listenTo(channel) {
    channel.onMessage = (handoff, message) => this.#do(this.#machine.message(handoff, message));
    channel.onEnd = (error) => {
      if (error) console.error(`handoff: ${error.message}; the channel is closed`);
      this.#channel = null;
      this.happen("closed");
    };
  }

  /** Adopts a new supervisor. Processes the old supervisor's messages first. */
  async #adopt(channel, handoff, adopt) {
    const version = commonVersion(adopt.minimum, adopt.current);
    if (version === 0) return channel.close();
    for (let turn = 0; turn < 2 && this.#channel !== null; turn++) await new Promise(setImmediate);
    if (this.#channel !== null) {
      this.#hangUp();
      this.happen("closed");
    }
    if (this.#machine.state === "Gone") return channel.close();
    channel.version = version;
    this.#channel = channel;
    this.#leaseMs = adopt.leaseMs;
    this.#listenTo(channel);
    this.#do(this.#machine.adopt(handoff));
    channel.resume();
  }

  #hangUp() {
    this.#channel?.close();
    this.#channel = null;
  }

  #do(actions) {
    for (const [name, value] of actions) this.#doOne(name, value);
    this.#tend();
  }

  #doOne(name, value) {
    switch (name) {
      case "Send":
        return this.#channel?.send(this.#machine.handoff, value);
      case "AnswerAdopt":
        return this.#answer(value);
      case "ArmLease":
        return this.#arm(value);
      case "DisarmLease":
        return clearTimeout(this.#lease.timer);
      case "Open":
        return this.#begin();
      case "Drain":
        return this.#runDrain(value.graceMs);
      case "CancelDrain":
        return this.#drain?.abort();
      case "Seal":
        return this.#run("seal", () => this.handlers.seal?.({ cut: value }));
      case "Resume":
        return this.#run("resume", () => this.handlers.resume?.());
      case "TakeOver":
        return this.#takeOver(value);
      case "HangUp":
        console.error("handoff: the supervisor broke the protocol; the channel is closed");
        return this.#hangUp();
      case "Exit":
        return void this.#exit(value);
    }
  }

  #takeOver(message) {
    this.#run("take over", () => {
      const state = unpack(message);
      if (this.handlers.takeOver) return this.handlers.takeOver(state);
      const what = `the predecessor handed over ${state.content.length} bytes of format ${state.format}`;
      console.error(`handoff: ${what}, which this service does not support`);
    });
  }

  #answer(stage) {
    const { service, generation, listeners } = this.#welcome;
    const version = this.#channel?.version;
    const fields = { version, pid: process.pid, service, generation, stage, listeners };
    this.#channel?.send(this.#machine.handoff, { type: "Adopted", ...fields });
    this.#sendVersion();
  }

  #arm(ms) {
    clearTimeout(this.#lease.timer);
    this.#lease.at = performance.now() + ms;
    const wait = () => {
      const left = this.#lease.at - performance.now();
      if (left <= 0) return this.happen("lease");
      this.#lease.timer = setTimeout(wait, Math.min(Math.ceil(left), TIMER_MAX));
    };
    this.#lease.timer = setTimeout(wait, Math.min(ms, TIMER_MAX));
  }

  /** Sends signs of life, while the supervisor waits for them. */
  #tend() {
    const isDue = this.#machine.works && this.#channel !== null;
    if (isDue === (this.#sign !== undefined)) return;
    clearInterval(this.#sign);
    const give = () =>
      this.#channel?.send(this.#machine.handoff, { type: "Progress", note: this.note.slice(0, REASON_MAX) });
    this.#sign = isDue ? setInterval(give, Math.min(Math.max(this.#leaseMs / 3, 1), TIMER_MAX)) : undefined;
  }

  /** Does nothing if a drain that was not cancelled runs already. */
  #runDrain(graceMs) {
    if (this.#drain && !this.#drain.signal.aborted) return;
    const controller = (this.#drain = new AbortController());
    const { signal } = controller;
    // A drain that is cancelled before it starts has nothing to wait for.
    const code = () => (signal.aborted ? undefined : this.handlers.drain?.({ graceMs, signal }));
    this.#run("drain", code, () => {
      if (this.#drain === controller) this.#drain = null;
    });
  }

  /** Runs the service's code after earlier calls. */
  #run(name, code, after = () => {}) {
    this.#last = this.#last.then(async () => {
      try {
        await code();
        after();
        this.happen(`${name} done`);
      } catch (error) {
        console.error(error);
        after();
        this.happen(`${name} failed`, error);
      }
    });
  }

  async #exit(code) {
    clearTimeout(this.#lease.timer);
    const until = performance.now() + FLUSH_MS;
    while (this.#channel && !this.#channel.isFlushed && performance.now() < until) await new Promise(setImmediate);
    this.#entrance?.remove();
    this.#code = code;
    if (this.#waiters.length === 0) process.exit(code);
    for (const resolve of this.#waiters) resolve(code);
  }
}
