// Calls tools of an MCP server with the official TypeScript SDK, each call once, in sessions with a standing stream.
//
//   node mcp_load.mjs 127.0.0.1:PORT [--seconds N] [--clients N] [--tools workload|everything|example]
//
// WORKLOAD_NODE is the directory with the node_modules of the SDK. Counts and last line are those of tally.py.

import { AsyncLocalStorage } from "node:async_hooks";
import diagnostics from "node:diagnostics_channel";
import { createRequire } from "node:module";
import { parseArgs } from "node:util";

const require = createRequire(`${process.env.WORKLOAD_NODE ?? process.cwd()}/from-here.js`);
const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");

// As in mcp_load.py.
const TOOLS = {
  workload: ["message", "slow", { seconds: 2, steps: 5 }, "version"],
  everything: ["message", "trigger-long-running-operation", { duration: 2, steps: 5 }, "get-env"],
  example: ["text", "slow", { step_ms: 400, steps: 5 }, "version"],
};
const FAILURES = ["refused", "reset", "cut", "timeout", "error_status", "wrong", "lost"];
// Those of a connection; the others are of an answer.
const OF_CONNECTION = ["refused", "reset", "cut", "timeout"];
// Maximum number of failures to list.
const TOLD = 100;
const TIMEOUT_MS = 20_000;
// As in mcp_load.py, from the first look after the write on.
const RACE_MS = 20;

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: "string", default: "20" },
    clients: { type: "string", default: "3" },
    path: { type: "string", default: "/mcp" },
    tools: { type: "string", default: "workload" },
  },
});
const address = positionals[0] ?? "";
if (!/^(127\.0\.0\.1|\[::1\]):\d+$/.test(address)) {
  console.error(`${address} is not an address of the loopback`);
  process.exit(64);
}
const [echoed, slowTool, slowArguments, versionTool] = TOOLS[given.tools];
const url = new URL(given.path, `http://${address}`);

let stopped = false;
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => (stopped = true));
setTimeout(() => (stopped = true), Math.min(Number(given.seconds), 600) * 1000).unref();

// Which connection each exchange is on, as undici tells it: { carried, opened }.
const exchanges = new AsyncLocalStorage();
const exchangeOf = new WeakMap();
diagnostics.subscribe("undici:request:create", ({ request }) => exchangeOf.set(request, exchanges.getStore()));
diagnostics.subscribe("undici:client:sendHeaders", ({ request, socket }) => {
  socket.opened ??= performance.now();
  socket.carried = (socket.carried ?? -1) + 1;
  const exchange = exchangeOf.get(request);
  if (!exchange) return;
  Object.assign(exchange, { carried: socket.carried, opened: socket.opened });
  // The second one comes when this process has looked at its sockets once more, however late it was given the processor.
  setImmediate(() => setImmediate(() => (exchange.looked = performance.now())));
});

const counts = {};
const told = [];
const versions = {};
const tookMs = [];
let first = null;
let lastOk = null;
let longestGap = 0;

const add = (name, number = 1) => (counts[name] = (counts[name] ?? 0) + number);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function ok(began, version) {
  const now = performance.now();
  add("requests");
  tookMs.push(now - began);
  if (version) versions[version] = (versions[version] ?? 0) + 1;
  if (lastOk !== null) longestGap = Math.max(longestGap, now - lastOk);
  lastOk = now;
}

// Of the connection: how many requests it had carried before, 0 for a new one, and when it was opened.
function failed(how, what, { carried = 0, opened = null } = {}) {
  const kind = carried > 0 ? "kept" : "new";
  if (FAILURES.includes(how)) {
    add("requests");
    first ??= `${how}: ${what}`;
  }
  if (OF_CONNECTION.includes(how)) add(`${kind}_${how}`);
  if (told.length < TOLD) {
    const ageMs = opened === null ? null : Math.round((performance.now() - opened) * 10) / 10;
    told.push({ how, at: Date.now() / 1000, kind, carried, age_ms: ageMs, what });
  }
  add(how);
}

// The fetch of the SDK, which notes how each exchange failed; it changes nothing.
function watchedFetch(noted) {
  return async (target, options) => {
    const exchange = {};
    let response;
    try {
      response = await exchanges.run(exchange, () => fetch(target, options));
    } catch (error) {
      noted.failure = [...whatEnded(error, exchange), exchange];
      throw error;
    }
    // The call that is under way, for an answer that ends too early.
    if (options?.method === "POST") noted.exchange = exchange;
    if (response.status >= 400) {
      noted.failure = ["error_status", `status ${response.status} to ${options?.method}`, exchange];
    }
    // A server need not have a standing stream to offer.
    if (response.status === 405 && options?.method === "GET") noted.failure = null;
    if (options?.method === "GET" && response.ok) add("streams");
    return response;
  };
}

function whatEnded(error, exchange) {
  const cause = error.cause ?? error;
  const what = `${cause.code ?? cause.name}: ${cause.message}`;
  if (cause.code === "ECONNREFUSED") return ["refused", what];
  if (/TIMEOUT/.test(cause.code ?? "")) return ["timeout", what];
  const reset = cause.code === "ECONNRESET" || cause.code === "EPIPE";
  const soon = exchange.looked === undefined || performance.now() - exchange.looked < RACE_MS;
  if (exchange.carried > 0 && (reset || soon)) return ["idle_raced", what];
  return [reset ? "reset" : "cut", what];
}

async function sessions(calls) {
  while (!stopped) {
    const noted = { failure: null };
    const client = new Client({ name: "workload", version: "1.0.0" });
    // Of the standing stream; the SDK opens it again by itself.
    client.onerror = (error) => !stopped && /SSE stream disconnected/.test(error.message) && add("streams_ended");
    const transport = new StreamableHTTPClientTransport(url, { fetch: watchedFetch(noted) });
    try {
      await client.connect(transport, { timeout: TIMEOUT_MS });
    } catch (error) {
      // It was opened at one process, and the next message reached the other.
      if (transport.sessionId && isLost(noted)) {
        add("sessions");
        add("sessions_lost");
      } else {
        report(noted, error);
      }
      await pause(50);
      continue;
    }
    add(transport.sessionId ? "sessions" : "clients_without_session");
    for (const [call, afterwards] of calls(client)) {
      if (stopped || !(await counted(call, noted))) break;
      await pause(afterwards);
    }
    await client.close();
  }
}

// Says whether the session is still there.
async function counted(call, noted) {
  noted.failure = null;
  const began = performance.now();
  try {
    ok(began, await call());
  } catch (error) {
    if (isLost(noted)) {
      add("sessions_lost");
      return false;
    }
    report(noted, error);
    await pause(50);
  }
  return true;
}

// A server that does not know the session says so with 404 (or 400, as some do).
const isLost = (noted) => /^status 40[04]/.test(noted.failure?.[1] ?? "");

function report(noted, error) {
  const timedOut = error.code === -32001;
  const [how, what, exchange] = noted.failure ?? [timedOut ? "timeout" : "cut", "", noted.exchange];
  failed(how, `${what} ${error.name}: ${error.message}`.trim().slice(0, 300), exchange);
  noted.failure = null;
}

const options = { timeout: TIMEOUT_MS };

function* quickCalls(client) {
  for (let number = 0; ; number++) {
    const message = `message ${number}`;
    const echo = async () => check(await client.callTool({ name: "echo", arguments: { [echoed]: message } }, undefined, options), message);
    const version = async () => {
      const text = check(await client.callTool({ name: versionTool, arguments: {} }, undefined, options));
      return (/WORKLOAD_VERSION": "(\w+)"/.exec(text) ?? /^(\w+)$/.exec(text))?.[1];
    };
    const names = async () => {
      const { tools } = await client.listTools(undefined, options);
      if (!tools.some((tool) => tool.name === "echo")) failed("wrong", "there is no tool echo");
    };
    yield [number % 4 === 1 ? version : number % 20 === 10 ? names : echo, number % 15 === 14 ? 300 : 5];
  }
}

function* slowCalls(client) {
  const slow = async () => {
    let seen = 0;
    const told = { ...options, onprogress: () => (seen += 1) };
    check(await client.callTool({ name: slowTool, arguments: slowArguments }, undefined, told));
    if (seen === 0) failed("wrong", "a slow call told no progress");
    add("slow_calls");
  };
  for (;;) yield [slow, 50];
}

function check(result, wanted = "") {
  const text = result.content?.[0]?.text ?? "";
  if (result.isError || !text.includes(wanted)) failed("wrong", `${JSON.stringify(text)} instead of ${wanted}`);
  // What it gives is counted as a version: an echo is none.
  return wanted ? undefined : text;
}

function finish() {
  tookMs.sort((a, b) => a - b);
  const rank = (share) => {
    const value = tookMs[Math.min(tookMs.length - 1, Math.max(0, Math.ceil(tookMs.length * share) - 1))];
    return value === undefined ? null : Math.round(value * 100) / 100;
  };
  const always = ["requests", ...FAILURES, "idle_closed", "idle_raced", "sessions_lost"];
  const line = Object.fromEntries(always.map((name) => [name, counts[name] ?? 0]));
  Object.assign(line, counts, { p50_ms: rank(0.5), p99_ms: rank(0.99), max_ms: rank(1) });
  Object.assign(line, { gap_ms: Math.round(longestGap * 100) / 100, versions, first, failures: told });
  console.log(JSON.stringify(line));
  process.exit((counts.requests ?? 0) > 0 && !FAILURES.some((name) => counts[name]) ? 0 : 1);
}

// A session whose answer never comes does not end the whole run.
process.on("unhandledRejection", (error) => failed("wrong", `nobody waited for: ${error}`));
const jobs = Array.from({ length: Number(given.clients) }, () => sessions(quickCalls));
jobs.push(sessions(slowCalls));
const atEnd = (async () => {
  while (!stopped) await pause(100);
  await pause(TIMEOUT_MS + 5_000);
  failed("timeout", "a client did not come to its end");
})();
await Promise.race([Promise.all(jobs), atEnd]);
finish();
