// A web server with two workers (node:cluster), as people run it on more than one core. The first process listens and deals the
// connections out; at SIGTERM the workers finish what they have.
'use strict';
const cluster = require('node:cluster');
const http = require('node:http');

const [port, version] = [Number(process.argv[2]), process.env.WORKLOAD_VERSION];

if (cluster.isPrimary) {
  let leaving = false;
  for (let worker = 0; worker < 2; worker += 1) cluster.fork();
  cluster.on('exit', () => {
    if (!leaving) cluster.fork();
    else if (Object.keys(cluster.workers).length === 0) process.exit(0);
  });
  process.on('SIGTERM', () => {
    leaving = true;
    for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGTERM');
  });
} else {
  const body = 'hello from node\n';
  const server = http.createServer((request, response) => {
    response.writeHead(200, { 'x-version': version, 'content-length': body.length });
    response.end(body);
  });
  server.listen(port, '127.0.0.1');
  process.on('SIGTERM', () => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  });
}
