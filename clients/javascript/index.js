/**
 * For servers in Node that `handoff` upgrades without a refused, reset or cut connection.
 *
 * The service file needs `channel = "stream"` and `mode = "overlap"`.
 *
 * @example
 * const service = await start({ bind: { main: { host: "127.0.0.1", port: 8000 } } });
 * const server = http.createServer(app);
 * // … all start-up that needs no data …
 * await service.begin();
 * await service.listen(server, "main");
 * service.ready(new HttpHandlers(server));
 * process.exit(await service.wait());
 */

export { FrameError, HandoffError } from "./lib/errors.js";
export { HttpHandlers } from "./lib/http.js";
export { Service, start, withoutVariables } from "./lib/service.js";
