/** The way in for another supervisor: a socket at the path in HANDOFF_ADOPT. */

import fs from "node:fs";
import net from "node:net";
import path from "node:path";

import { Channel } from "./channel.js";

/** As many that have said nothing are kept, the newest. */
const PENDING_MAX = 4;

/** The socket, and whoever stands there and has said nothing yet. */
export class Entrance {
  #path;
  #identity = "";
  /** @type {Channel[]} */
  #callers = [];
  /** @type {(channel: Channel, handoff: Buffer, adopt: import("./message.js").Message) => void} */
  onAdopt = (channel) => channel.close();

  /** @param {string} at */
  constructor(at) {
    this.#path = at;
  }

  /**
   * Listens. Node cannot ask who connects. Until the path has its mode, its directory keeps others out: the umask is that of
   * the whole process, and what other threads create meanwhile would get it.
   */
  async open() {
    if (!path.isAbsolute(this.#path) || Buffer.byteLength(this.#path) > 107) {
      throw new Error("the path is not absolute, or has more than 107 bytes");
    }
    checkPrivate(path.dirname(this.#path));
    const server = net.createServer((socket) => this.#letIn(socket));
    server.listen({ path: this.#path, backlog: PENDING_MAX });
    await new Promise((resolve, reject) => server.once("listening", resolve).once("error", reject));
    server.on("error", () => {});
    fs.chmodSync(this.#path, 0o600);
    this.#identity = identity(this.#path);
  }

  /** Removes the path, if that is still the socket of this process. */
  remove() {
    try {
      if (this.#identity !== "" && identity(this.#path) === this.#identity) fs.unlinkSync(this.#path);
    } catch {
      // It is gone already.
    }
  }

  #letIn(socket) {
    const channel = new Channel(socket);
    const forget = () => (this.#callers = this.#callers.filter((other) => other !== channel));
    channel.onEnd = forget;
    channel.onMessage = (handoff, message) => {
      forget();
      if (message.type !== "Adopt") return channel.close();
      channel.pause();
      this.onAdopt(channel, handoff, message);
    };
    this.#callers.push(channel);
    while (this.#callers.length > PENDING_MAX) this.#callers.shift()?.close();
  }
}

/**
 * The one that the supervisor asked for. If that fails the process can serve, but not be adopted.
 * @param {NodeJS.ProcessEnv} env
 * @returns {Promise<Entrance | null>}
 */
export async function entrance(env) {
  if (env.HANDOFF_ADOPT === undefined) return null;
  try {
    const opened = new Entrance(env.HANDOFF_ADOPT);
    await opened.open();
    return opened;
  } catch (error) {
    const what = "another supervisor could not take this process over";
    console.error(`handoff: cannot listen at ${env.HANDOFF_ADOPT}: ${error.message}; ${what}`);
    return null;
  }
}

/** The supervisor has made the directory for itself. */
function checkPrivate(directory) {
  const { mode, uid } = fs.statSync(directory);
  if ((mode & 0o077) !== 0) throw new Error(`others may enter ${directory} (chmod 700 it)`);
  if (uid !== process.geteuid?.() && uid !== 0) throw new Error(`${directory} belongs to user ${uid}`);
}

function identity(at) {
  const { dev, ino } = fs.lstatSync(at, { bigint: true });
  return `${dev} ${ino}`;
}
