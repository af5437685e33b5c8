/** The channel: a unix socket of type SOCK_STREAM. */

import net from "node:net";

import { HandoffError } from "./errors.js";
import { Cutter, UNAGREED, decode, encode } from "./frame.js";

/** One end. Reports each message, and once the end. */
export class Channel {
  #socket;
  #cutter = new Cutter();
  #over = false;
  version = UNAGREED;
  /** @type {(handoff: Buffer, message: import("./message.js").Message) => void} */
  onMessage = () => {};
  /** @type {(error?: Error) => void} With an error if the channel did not end cleanly. */
  onEnd = () => {};

  /** @param {net.Socket} socket */
  constructor(socket) {
    this.#socket = socket;
    socket.on("data", (bytes) => this.#take(bytes));
    socket.on("end", () => this.#end());
    socket.on("close", () => this.#end());
    socket.on("error", () => this.#end());
  }

  /** Reports nothing until `resume`. */
  pause() {
    this.#socket.pause();
  }

  /** Reports messages that have arrived, and later ones. */
  resume() {
    if (!this.#socket.destroyed) this.#socket.resume();
    this.#take(Buffer.alloc(0));
  }

  /**
   * @param {Buffer} handoff
   * @param {import("./message.js").Message} message
   */
  send(handoff, message) {
    if (!this.#over) this.#socket.write(encode(this.version, handoff, message));
  }

  /** Whether the kernel has accepted everything that was sent. */
  get isFlushed() {
    return this.#over || this.#socket.writableLength === 0;
  }

  /** Closes the channel, and reports nothing more. */
  close() {
    this.#over = true;
    this.#socket.destroy();
  }

  #take(bytes) {
    if (this.#over) return;
    try {
      this.#cutter.push(bytes);
      while (!this.#over && !this.#socket.isPaused()) {
        const frame = this.#cutter.next();
        if (frame === null) return;
        const { handoff, message } = decode(frame, this.version);
        this.onMessage(handoff, message);
      }
    } catch (error) {
      if (error.name !== "FrameError") throw error;
      this.#end(error);
    }
  }

  #end(error) {
    if (this.#over) return;
    this.close();
    try {
      if (!error) this.#cutter.end();
    } catch (short) {
      error = short;
    }
    this.onEnd(error);
  }
}

/**
 * The channel from the supervisor; `null` if there is no supervisor.
 * @param {NodeJS.ProcessEnv} env
 * @returns {Channel | null}
 */
export function inherited(env) {
  const text = env.HANDOFF_FD;
  if (text === undefined) return null;
  if (env.HANDOFF_CHANNEL !== "stream") {
    throw new HandoffError('this library needs a stream; write channel = "stream" in the service file');
  }
  if (!/^[0-9]+$/.test(text) || Number(text) < 3) {
    throw new HandoffError(`HANDOFF_FD=${text} is not the number of a descriptor above 2`);
  }
  try {
    return new Channel(new net.Socket({ fd: Number(text), readable: true, writable: true }));
  } catch (error) {
    throw new HandoffError(`cannot use descriptor ${text} of HANDOFF_FD: ${error.message}`);
  }
}
