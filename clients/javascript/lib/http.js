/** The handlers of a service that consists of one HTTP server. */

/** Connections that are not done by then are cut, if they may be. */
const CUT_AFTER_MS = 5000;
const LOOK_MS = 10;
/**
 * For so long at most a drain waits that clients use their idle connections once more, and are asked for another one. It is
 * what Node itself keeps an idle connection for, and clients use none that is about to be so old.
 */
const LINGER_MS = 5000;

/**
 * While it drains, each response asks its client for another connection, which goes to the new process. A connection that
 * is closed while it is idle may be one on which its client sends at that moment, so a drain lingers a little. When it
 * seals, those that are idle all the same are closed, and the others are waited for.
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
      this.#closeBehind(response);
    });
  }

  /** Asks the client for another connection, also if the server itself asks it to keep this one. */
  #closeBehind(response) {
    const { writeHead } = response;
    response.writeHead = (status, ...rest) => {
      if (this.#isDraining) {
        response.setHeader("Connection", "close");
        rest = rest.map(withoutConnection);
      }
      return writeHead.call(response, status, ...rest);
    };
  }

  /** @param {{ signal: AbortSignal }} how */
  async drain({ signal }) {
    const until = performance.now() + Math.min(LINGER_MS, this.#server.keepAliveTimeout);
    const isInUse = () => this.#running > 0 || (this.#connections > 0 && performance.now() < until);
    this.#isDraining = true;
    await this.#onDrain();
    while (isInUse() && !signal.aborted) await pause();
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

/** The headers of a response, in any of the forms that Node takes them. */
function withoutConnection(headers) {
  const isOther = (name) => String(name).toLowerCase() !== "connection";
  if (headers === null || typeof headers !== "object") return headers;
  if (!Array.isArray(headers)) return Object.fromEntries(Object.entries(headers).filter(([name]) => isOther(name)));
  if (headers.some(Array.isArray)) return headers.filter(([name]) => isOther(name));
  return headers.filter((_, at) => isOther(headers[at - (at % 2)]));
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve, LOOK_MS));
}
