#!/usr/bin/env node
/**
 * An MCP server over streamable HTTP that can be upgraded: npm install @modelcontextprotocol/sdk handoff-service.
 *
 * The service file says channel = "stream" and mode = "overlap", and has a listener called main. Calls that run are
 * finished by the old process.
 */

import http from "node:http";

import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { HttpHandlers, start } from "handoff-service";

const VERSION = "1.0.0";

/** No session lives in this process, so any process can take the next request of a client. */
function mcp() {
  const server = new McpServer({ name: "example", version: VERSION });
  server.registerTool("version", { description: "Which version answers" }, async () => ({
    content: [{ type: "text", text: VERSION }],
  }));
  return server;
}

/** Streams that a client has opened to listen: they end when the process drains, and the client opens another. */
const streams = new Set();

async function answer(request, response) {
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
  const server = mcp();
  response.once("close", () => {
    streams.delete(transport);
    void server.close();
  });
  if (request.method === "GET") streams.add(transport);
  await server.connect(transport);
  await transport.handleRequest(request, response);
}

const service = await start({ bind: { main: { host: "127.0.0.1", port: 8000 } } });
const server = http.createServer((request, response) => {
  answer(request, response).catch((error) => {
    console.error(error);
    if (!response.headersSent) response.writeHead(500);
    response.end();
  });
});
const onDrain = () => Promise.all([...streams].map((stream) => stream.close()));
const handlers = new HttpHandlers(server, { onDrain });
await service.begin();
await service.listen(server, "main");
service.ready(handlers);
process.exit(await service.wait());
