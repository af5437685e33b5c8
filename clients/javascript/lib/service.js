/** One process of a service: `start`, `begin`, `listen`, `ready`, `wait`. */

import { entrance } from "./adoption.js";
import { inherited } from "./channel.js";
import { Driver } from "./driver.js";
import { HandoffError } from "./errors.js";
import { CURRENT, MINIMUM } from "./frame.js";
import { pack } from "./state.js";

/** The number of the first inherited listener. */
const FIRST_LISTENER = 3;
/** The kernel caps it. */
const BACKLOG = 2 ** 31 - 1;
const EXCLUSIVE =
  "Node cannot take the data lock, nor stop accepting without closing a listener: write mode = \"overlap\" in the service file";

/** One process of a service. Created by `start`. */
export class Service {
  #driver;
  #welcome;
  #bind;

  /**
   * @param {Driver | null} driver
   * @param {import("./message.js").Message | null} welcome
   * @param {Record<string, import("node:net").ListenOptions>} bind
   */
  constructor(driver, welcome, bind) {
    this.#driver = driver;
    this.#welcome = welcome;
    this.#bind = bind;
  }

  /** Whether there is a supervisor. The service also runs without one. */
  get isSupervised() {
    return this.#driver !== null;
  }

  /** The generation of this process once it is committed; 0 without a supervisor. */
  get generation() {
    return this.#welcome?.generation ?? 0;
  }

  /** The names of its listeners. */
  get listeners() {
    return this.#welcome?.listeners ?? Object.keys(this.#bind);
  }

  /**
   * Sets a note for people about what this process is waiting for.
   * @param {string} text
   */
  note(text) {
    if (this.#driver) this.#driver.note = text;
  }

  /**
   * Hands state to the successor, if there is one: state that is not in the data and would otherwise be lost. Call it
   * in `drain` or `seal`; the last call counts. Throws above 32 KiB, the maximum on a stream. The state is dropped at
   * a stop, and if the supervisor or the new process does not support it.
   * @param {number} format
   * @param {Buffer | Uint8Array | string} bytes
   */
  handOver(format, bytes) {
    if (this.#driver) this.#driver.handOver(format, bytes);
    else pack(format, bytes);
  }

  /**
   * Reports that start-up is complete, and waits until this process must accept. If the supervisor dismisses the
   * process, it ends.
   */
  async begin() {
    this.#driver?.happen("started");
    await this.#driver?.begun;
  }

  /**
   * Makes a server accept from a listener. Only after `begin`, and once for each.
   * @param {import("node:net").Server} server
   * @param {string} name
   */
  async listen(server, name) {
    const at = this.listeners.indexOf(name);
    if (at < 0) throw new HandoffError(`there is no listener ${name}, only ${this.listeners.join(", ")}`);
    const from = this.#driver ? { fd: FIRST_LISTENER + at } : this.#bind[name];
    await new Promise((resolve, reject) => {
      server.once("error", reject);
      // For a descriptor, Node uses the second argument only.
      server.listen({ ...from, backlog: BACKLOG }, BACKLOG, () => resolve(server.off("error", reject)));
    });
  }

  /**
   * Reports that this process accepts. From now on the library calls the handlers to hand over.
   * @param {import("./driver.js").Handlers} handlers
   */
  ready(handlers = {}) {
    if (!this.#driver) return;
    this.#driver.handlers = handlers;
    this.#driver.happen("opened");
  }

  /**
   * Reports that this process cannot serve, and ends it.
   * @param {unknown} reason
   * @returns {Promise<never>}
   */
  async unhealthy(reason) {
    console.error(reason);
    if (!this.#driver) process.exit(1);
    this.#driver.happen("not opened", reason);
    return new Promise(() => {});
  }

  /**
   * The exit code, when the process must end. Nothing is left to do then. If nothing waits, the library ends the
   * process.
   */
  async wait() {
    return this.#driver ? this.#driver.finished() : new Promise(() => {});
  }
}

/**
 * Connects to the supervisor. Without one, `listen` binds what `bind` has for a name. `version` is the version text
 * of this server for people. Call it once, before everything else, on the main thread.
 * @param {{ bind?: Record<string, import("node:net").ListenOptions>, env?: NodeJS.ProcessEnv, version?: string }}
 * options
 * @returns {Promise<Service>}
 */
export async function start({ bind = {}, env = process.env, version = "" } = {}) {
  const channel = inherited(env);
  if (channel === null) return new Service(null, null, bind);
  const handoff = parseId(env.HANDOFF_ID);
  const greeting = new Promise((resolve, reject) => {
    channel.onMessage = (id, message) => {
      channel.pause();
      resolve({ id, message });
    };
    channel.onEnd = (error) => (error ? reject(error) : resolve(null));
  });
  const wayIn = await entrance(env);
  channel.send(handoff, { type: "Hello", minimum: MINIMUM, current: CURRENT, pid: process.pid });
  const answer = await greeting;
  const isOurs = answer?.id.equals(handoff);
  if (answer === null || (isOurs && answer.message.type === "Abort")) {
    console.error("handoff: the supervisor has dismissed this process");
    wayIn?.remove();
    process.exit(0);
  }
  const { message: welcome } = answer;
  const wrong = isOurs ? whatIsWrong(welcome, env) : "the Welcome is of another handoff";
  if (wrong !== null) {
    wayIn?.remove();
    throw new HandoffError(wrong);
  }
  channel.version = welcome.version;
  const driver = new Driver(channel, wayIn, handoff, welcome);
  driver.tellVersion(version);
  const service = new Service(driver, welcome, {});
  channel.resume();
  if (welcome.mode !== "overlap") return service.unhealthy(EXCLUSIVE);
  return service;
}

/**
 * The environment for child programs, without the variables for this process.
 * @param {NodeJS.ProcessEnv} env
 */
export function withoutVariables(env = process.env) {
  const own = ["HANDOFF_FD", "HANDOFF_ID", "HANDOFF_ADOPT", "HANDOFF_CHANNEL", "LISTEN_FDS", "LISTEN_FDNAMES"];
  return Object.fromEntries(Object.entries(env).filter(([name]) => !own.includes(name)));
}

function whatIsWrong(welcome, env) {
  if (welcome.type !== "Welcome") return `received a ${welcome.type} instead of Welcome`;
  if (welcome.version < MINIMUM || welcome.version > CURRENT) {
    return `the supervisor chose version ${welcome.version}, which was not offered`;
  }
  const names = (env.LISTEN_FDNAMES ?? "").split(":").filter(Boolean);
  const isSame = Number(env.LISTEN_FDS ?? 0) === names.length && names.join(":") === welcome.listeners.join(":");
  return isSame ? null : `the listeners ${welcome.listeners} of Welcome are not those in LISTEN_FDNAMES, ${names}`;
}

function parseId(text = "") {
  const digits = text.replace(/-/g, "");
  if (!/^[0-9a-f]{32}$/i.test(digits)) throw new HandoffError(`HANDOFF_ID=${text} is not a UUID`);
  return Buffer.from(digits, "hex");
}
