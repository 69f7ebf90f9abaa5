/**
 * The process of strangers that flood a server's socket, told by its parent when to begin and when to stop: a hundred
 * connections that say nothing, two hundred a second that send garbage, fifty a second that come and go.
 */
import { connect, type Socket } from "node:net";
import { SeededRandom } from "../../src/base/seeded-random.ts";

const HALF_OPEN = 100;
const TICK_MS = 20;

const path = process.argv[2];
const random = new SeededRandom(2);
const sockets = new Set<Socket>();
let timer: NodeJS.Timeout | undefined;

function stranger(): Socket {
  const socket = connect({ path, allowHalfOpen: true });
  sockets.add(socket);
  socket.on("error", () => undefined);
  socket.on("close", () => sockets.delete(socket));
  return socket.resume();
}

function tick(): void {
  for (let count = 0; count < 4; count += 1) stranger().end(random.bytes(1 + random.below(2000)));
  stranger().once("connect", function (this: Socket) {
    this.destroy();
  });
  if (sockets.size < HALF_OPEN) stranger();
}

process.on("message", (message) => {
  clearInterval(timer);
  if (message === "begin") timer = setInterval(tick, TICK_MS);
  else for (const socket of sockets) socket.destroy();
});
process.on("disconnect", () => process.exit(0));
