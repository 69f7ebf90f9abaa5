/** A server with as many volumes open as it may: the next client is told so, and is served once there is room. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Playground } from "../../cli/program.ts";
import { NbdClient } from "../nbd-client.ts";

test("one volume more than the server may open is refused with the reason, and served once another has gone", async (context) => {
  const ground = await Playground.make();
  context.after(() => ground.remove());
  for (const name of ["first", "second"]) assert.equal((await ground.volume("create", name, "16MiB")).code, 0);
  const server = await ground.serve([...ground.serverFlags(), "--max-volumes=1"]);
  const first = await NbdClient.open(ground.socketPath, "first");
  const again = await NbdClient.open(ground.socketPath, "first");
  await assert.rejects(NbdClient.open(ground.socketPath, "second"), /as many volumes open as it may: detach some/);
  assert.equal(await first.write(0, Buffer.alloc(4096, 1)), 0);
  assert.equal(await again.flush(), 0);
  first.close();
  again.close();
  await server.logged("an exported volume is closed");
  const second = await NbdClient.open(ground.socketPath, "second");
  assert.equal((await second.read(0, 4096)).answer, 0);
  second.close();
  assert.equal(await server.stop("SIGTERM"), 0);
});
