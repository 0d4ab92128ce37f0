// Socket.IO on Node.js: emit to a room, WebSocket transport only. Same commands as control.py.
"use strict";
const http = require("http");
const readline = require("readline");
const { Server } = require("socket.io");

const server = http.createServer();
const io = new Server(server, { transports: ["websocket"], pingInterval: 3600000, pingTimeout: 3600000, perMessageDeflate: false });
io.on("connection", (socket) => socket.join("camden"));

const say = (facts) => process.stdout.write(JSON.stringify(facts) + "\n");
const turn = () => new Promise((resolve) => setImmediate(resolve));

function message(size) {
  const head = '{"jsonrpc":"2.0","method":"event","params":{"channel":"zone:camden","data":"';
  return head + "x".repeat(size - head.length - 3) + '"}}';
}

server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => say({ port: server.address().port }));

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const { turns, burst, size } = JSON.parse(line);
  const started = Number(process.hrtime.bigint()) / 1e9;
  for (let i = 0; i < turns; i++) {
    for (let j = 0; j < burst; j++) io.to("camden").emit("event", message(size));
    await turn();
  }
  say({ started });
});
