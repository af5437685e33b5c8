#!/usr/bin/env node
/** A small HTTP server on the JavaScript library. */

import http from "node:http";

const { HttpHandlers, start } = await import(process.env.HANDOFF_CLIENT);

const [VERSION, FAULT] = ["0", ""];

/** Executes the fault of this release at a point. */
async function fault(point) {
  if (FAULT === `kill-${point}`) process.kill(process.pid, "SIGKILL");
  if (FAULT === `fail-${point}`) throw new Error(`this release fails in ${point}`);
  if (FAULT === `hang-${point}`) await new Promise(() => {});
  if (FAULT === `busy-${point}`) for (const end = Date.now() + 1500; Date.now() < end; );
  if (FAULT === `slow-${point}`) await new Promise((resolve) => setTimeout(resolve, 3000));
}

/** Hands over state at a point, if this release does so. */
function handOver(point) {
  if (!FAULT.startsWith("hands-")) return;
  if (point === "drain") service.handOver(1, "early");
  else service.handOver(2, content(Number(FAULT.slice(6))));
}

function content(length) {
  return Buffer.alloc(length, "handed over ");
}

/** A description of the received state, for clients. */
let taken = "none";

class Handlers extends HttpHandlers {
  async drain(how) {
    await fault("drain");
    handOver("drain");
    await super.drain(how);
  }

  async seal(how) {
    console.log(`${VERSION} seals`);
    await fault("seal");
    await super.seal(how);
    handOver("seal");
  }

  async takeOver({ format, content: found }) {
    await fault("take");
    const isSound = found.equals(content(found.length)) || found.toString() === "early";
    taken = `${format}:${found.length}:${isSound ? "sound" : "damaged"}`;
  }

  async resume() {
    await fault("resume");
    super.resume();
    console.log(`${VERSION} resumes`);
  }
}

const service = await start({ version: `${VERSION}-said` });
const server = http.createServer((request, response) => {
  const answer = () => response.end(`${request.url === "/state" ? taken : VERSION} ${process.pid}`);
  const [, , ms] = request.url.split("/");
  if (request.url.startsWith("/block/")) for (const until = Date.now() + Number(ms); Date.now() < until; );
  if (request.url.startsWith("/slow/")) setTimeout(answer, Number(ms));
  else answer();
});
const handlers = new Handlers(server);
try {
  await fault("warming");
  await service.begin();
  await fault("begin");
  await service.listen(server, "main");
  await fault("ready");
} catch (error) {
  await service.unhealthy(error);
}
service.ready(handlers);
console.log(`${VERSION} serves`);
process.exit(await service.wait());
