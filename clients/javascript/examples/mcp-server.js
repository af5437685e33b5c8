#!/usr/bin/env node
/**
 * An upgradable MCP server over streamable HTTP: npm install @modelcontextprotocol/sdk zod handoff-service.
 *
 * The service file needs channel = "stream", mode = "overlap", and a listener called main. The old process finishes
 * running calls, event streams end cleanly, and the new process takes over the sessions.
 */

import { randomUUID } from "node:crypto";
import { EventEmitter, once } from "node:events";
import http from "node:http";

import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { HttpHandlers, start } from "handoff-service";
import { z } from "zod";

const VERSION = "1.0.0";
/** The format of the handed-over state, and the maximum size of its content. */
const FORMAT = 1;
const HANDED_MAX = 32 * 1024;
/** How long a request with an unknown session waits for the predecessor to hand that session over. */
const HOLD_MS = 5000;
const SESSION = "mcp-session-id";

const service = await start({ bind: { main: { host: "127.0.0.1", port: 8000 } }, version: VERSION });

/**
 * The sessions, around the SDK's transport, which is stateless. While this process drains, clients use both processes.
 * So it hands the table over at once, and again after each change. The new process adds the entries that it lacks, so
 * nothing is lost; a client that reuses an old connection does not yet see its changes from a new one.
 */
const sessions = {
  /** @type {Map<string, string[]>} */
  notes: new Map(),
  news: new EventEmitter().setMaxListeners(0),
  /** Whether no more sessions can arrive from a predecessor. */
  isComplete: service.generation <= 1,
  isDraining: false,

  hasChanged() {
    if (this.isDraining) this.handOver(false);
  },

  /** Drops the oldest sessions if there are too many; their clients initialize new ones. */
  handOver(isLast) {
    const notes = [...this.notes];
    let bytes = Buffer.from(JSON.stringify({ notes, isLast }));
    while (bytes.length > HANDED_MAX && notes.length > 0) {
      notes.splice(0, Math.ceil(notes.length / 8));
      bytes = Buffer.from(JSON.stringify({ notes, isLast }));
    }
    if (notes.length < this.notes.size) console.error(`${this.notes.size - notes.length} sessions are dropped`);
    service.handOver(FORMAT, bytes);
  },

  takeOver({ format, content }) {
    if (format !== FORMAT) throw new Error(`sessions in format ${format}: this version supports ${FORMAT}`);
    const { notes, isLast } = JSON.parse(content.toString());
    for (const [session, found] of notes) {
      this.notes.set(session, [...new Set([...found, ...(this.notes.get(session) ?? [])])]);
    }
    this.isComplete = isLast;
    this.news.emit("came");
  },

  async knows(session) {
    const signal = AbortSignal.timeout(HOLD_MS);
    while (!this.notes.has(session) && !this.isComplete && !signal.aborted) {
      await once(this.news, "came", { signal }).catch(() => {});
    }
    return this.notes.has(session);
  },
};

function mcp() {
  const server = new McpServer({ name: "example", version: VERSION });
  const text = (text) => ({ content: [{ type: "text", text }] });
  server.registerTool("version", { description: "Returns the version" }, async () => text(VERSION));
  const description = "Stores a note for the life of the session, and returns all notes";
  server.registerTool("remember", { description, inputSchema: { note: z.string() } }, async ({ note }, extra) => {
    const session = extra.requestInfo.headers[SESSION];
    const notes = sessions.notes.get(session);
    if (notes === undefined) throw new Error("this connection has no session");
    notes.push(note);
    sessions.hasChanged();
    return text(JSON.stringify(notes));
  });
  return server;
}

/** Streams that clients have opened to listen. They end when the process drains, and clients open others. */
const streams = new Set();

async function answer(request, response) {
  const session = request.headers[SESSION];
  if (session !== undefined && !(await sessions.knows(session))) {
    return response.writeHead(404).end("the session is unknown: initialize a new one");
  }
  if (request.method === "DELETE" && session !== undefined) {
    sessions.notes.delete(session);
    sessions.hasChanged();
    return response.writeHead(200).end();
  }
  if (request.method === "GET" && sessions.isDraining) {
    return response.writeHead(200, { "Content-Type": "text/event-stream" }).end();
  }
  const body = request.method === "POST" ? await read(request) : undefined;
  if (body?.method === "initialize") {
    const opened = randomUUID();
    sessions.notes.set(opened, []);
    sessions.hasChanged();
    response.setHeader(SESSION, opened);
  }
  await pass(request, response, body);
}

async function pass(request, response, body) {
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
  const server = mcp();
  response.once("close", () => {
    streams.delete(transport);
    void server.close();
  });
  if (request.method === "GET") streams.add(transport);
  await server.connect(transport);
  await transport.handleRequest(request, response, body);
}

async function read(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  try {
    return JSON.parse(Buffer.concat(parts).toString());
  } catch {
    return null; // The transport reports what is wrong with it.
  }
}

class Handlers extends HttpHandlers {
  takeOver(state) {
    sessions.takeOver(state);
  }

  async drain(how) {
    sessions.isDraining = true;
    sessions.handOver(false);
    await super.drain(how);
  }

  async seal(how) {
    await super.seal(how);
    sessions.handOver(true);
  }

  resume() {
    sessions.isDraining = false;
    super.resume();
  }
}

const server = http.createServer((request, response) => {
  answer(request, response).catch((error) => {
    console.error(error);
    if (!response.headersSent) response.writeHead(500);
    response.end();
  });
});
const onDrain = () => Promise.all([...streams].map((stream) => stream.close()));
const handlers = new Handlers(server, { onDrain });
await service.begin();
await service.listen(server, "main");
service.ready(handlers);
process.exit(await service.wait());
