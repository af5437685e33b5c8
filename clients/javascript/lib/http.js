/** The handlers of a service that consists of one HTTP server. */

/** Connections that are not done by then are cut, if they may be. */
const CUT_AFTER_MS = 5000;
const LOOK_MS = 10;

/**
 * While it drains, each response asks its client for another connection, which goes to the new process. When it seals, all
 * connections have ended: those that are idle are closed, and the others are waited for.
 */
export class HttpHandlers {
  #server;
  #onDrain;
  #running = 0;
  #connections = 0;
  #isDraining = false;

  /**
   * @param {import("node:http").Server} server Not yet listening.
   * @param {{ onDrain?: () => unknown }} options `onDrain` ends what would never end by itself, such as streams of events.
   */
  constructor(server, { onDrain = () => {} } = {}) {
    this.#server = server;
    this.#onDrain = onDrain;
    server.on("connection", (socket) => {
      this.#connections += 1;
      socket.once("close", () => (this.#connections -= 1));
    });
    server.prependListener("request", (_request, response) => {
      this.#running += 1;
      response.once("close", () => (this.#running -= 1));
      if (this.#isDraining) response.setHeader("Connection", "close");
    });
  }

  /** @param {{ signal: AbortSignal }} how */
  async drain({ signal }) {
    this.#isDraining = true;
    await this.#onDrain();
    while (this.#running > 0 && !signal.aborted) await pause();
  }

  /** @param {{ cut: boolean }} how */
  async seal({ cut }) {
    const cutAt = performance.now() + CUT_AFTER_MS;
    this.#isDraining = true;
    for (;;) {
      this.#server.closeIdleConnections();
      if (this.#connections === 0) return;
      if (cut && performance.now() > cutAt) this.#server.closeAllConnections();
      await pause();
    }
  }

  resume() {
    this.#isDraining = false;
  }
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve, LOOK_MS));
}
