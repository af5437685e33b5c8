/** The handlers of an HTTP server. */

import assert from "node:assert/strict";
import http from "node:http";
import { test } from "node:test";

import { HttpHandlers } from "../lib/http.js";

/** Sends the headers that the path selects, in each form that Node accepts. */
const FORMS = {
  "/none": (response) => response.end("done"),
  "/object": (response) => response.writeHead(200, { connection: "keep-alive", "X-Own": "1" }).end("done"),
  "/reason": (response) => response.writeHead(200, "Fine", { Connection: "keep-alive", "X-Own": "1" }).end("done"),
  "/flat": (response) => response.writeHead(200, ["Connection", "keep-alive", "X-Own", "1"]).end("done"),
};

async function serving(work) {
  const server = http.createServer((request, response) => FORMS[request.url](response));
  const handlers = new HttpHandlers(server);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  const get = (path) =>
    new Promise((resolve, reject) => {
      const answered = (response) => response.resume().on("end", () => resolve(response.headers));
      http.get({ port, host: "127.0.0.1", path, agent }, answered).on("error", reject);
    });
  try {
    await work(handlers, get);
  } finally {
    agent.destroy();
    server.close();
    server.closeAllConnections();
  }
}

test("while it drains each response asks for another connection, whatever the server says", async () => {
  await serving(async (handlers, get) => {
    assert.equal((await get("/object")).connection, "keep-alive");
    const { signal } = new AbortController();
    const drained = handlers.drain({ signal });
    for (const path of Object.keys(FORMS)) {
      const headers = await get(path);
      assert.equal(headers.connection, "close", path);
      assert.equal(headers["x-own"], path === "/none" ? undefined : "1", path);
    }
    await drained;
    await handlers.seal({ cut: false });
    handlers.resume();
    assert.equal((await get("/object")).connection, "keep-alive");
  });
});

test("a drain waits a little for a connection that is idle, and is not kept by it", async () => {
  await serving(async (handlers, get) => {
    await get("/none");
    const { signal } = new AbortController();
    const began = performance.now();
    let isOver = false;
    const drained = handlers.drain({ signal }).then(() => (isOver = true));
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(isOver, false);
    await get("/none");
    await drained;
    assert.ok(performance.now() - began < 2000, "its client has used it once more, and closed it");
    await get("/none");
    await handlers.seal({ cut: false });
  });
});
