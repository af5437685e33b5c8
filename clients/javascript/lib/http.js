/** The handlers of a service that consists of one HTTP server. */

/** Time after which unfinished connections are cut, if that is allowed. */
const CUT_AFTER_MS = 5000;
const LOOK_MS = 10;
/**
 * Maximum time that a drain waits for clients to use their idle connections once more, so that it can ask them to
 * reconnect. It is Node's own keep-alive time, and clients do not use connections that are about to reach it.
 */
const LINGER_MS = 5000;

/**
 * During a drain each response asks its client to reconnect, which leads to the new process. A client may send on an
 * idle connection just as that is closed, so a drain waits a little. The seal then closes idle connections, and waits
 * for the others.
 */
export class HttpHandlers {
  #server;
  #onDrain;
  #running = 0;
  #connections = 0;
  #isDraining = false;

  /**
   * @param {import("node:http").Server} server Not yet listening.
   * @param {{ onDrain?: () => unknown }} options `onDrain` ends what never ends by itself, such as event streams.
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

  /** Asks the client to reconnect, even if the server itself asks it to keep the connection. */
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

/** The headers of a response, in any of the forms that Node accepts. */
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
