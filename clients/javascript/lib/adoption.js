/** Lets a new supervisor connect: a socket at the path in HANDOFF_ADOPT. */

import fs from "node:fs";
import net from "node:net";
import path from "node:path";

import { Channel } from "./channel.js";

/** Maximum number of silent connections to keep, the newest. */
const PENDING_MAX = 4;
/** Connections in the accept queue: supervisors that came and went while this process was frozen. */
const QUEUE_MAX = 64;

/** The socket, and the connections that have sent nothing yet. */
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
   * Listens. Node cannot query the user of the peer. Until the path has its mode, its directory keeps other users
   * out: the umask belongs to the whole process, and would also affect files that other threads create.
   */
  async open() {
    if (!path.isAbsolute(this.#path) || Buffer.byteLength(this.#path) > 107) {
      throw new Error("the path is not absolute, or has more than 107 bytes");
    }
    checkPrivate(path.dirname(this.#path));
    const server = net.createServer((socket) => this.#letIn(socket));
    server.listen({ path: this.#path, backlog: QUEUE_MAX });
    await new Promise((resolve, reject) => server.once("listening", resolve).once("error", reject));
    server.on("error", () => {});
    fs.chmodSync(this.#path, 0o600);
    this.#identity = identity(this.#path);
  }

  /** Removes the path, if it is still the socket of this process. */
  remove() {
    try {
      if (this.#identity !== "" && identity(this.#path) === this.#identity) fs.unlinkSync(this.#path);
    } catch {
      // Already gone.
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
 * Opens the socket at the path from the supervisor. On failure the process can serve, but cannot be adopted.
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
    const what = "if its supervisor ends, no other supervisor can adopt this process";
    console.error(`handoff: cannot listen at ${env.HANDOFF_ADOPT}: ${error.message}; ${what}`);
    return null;
  }
}

/** The supervisor has created the directory for itself. */
function checkPrivate(directory) {
  const { mode, uid } = fs.statSync(directory);
  if ((mode & 0o077) !== 0) throw new Error(`other users can enter ${directory} (run: chmod 700)`);
  if (uid !== process.geteuid?.() && uid !== 0) throw new Error(`${directory} belongs to user ${uid}`);
}

function identity(at) {
  const { dev, ino } = fs.lstatSync(at, { bigint: true });
  return `${dev} ${ino}`;
}
