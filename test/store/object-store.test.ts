/** The object store contract, on every implementation. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { DirectoryStore } from "../../src/store/directory.ts";
import { FaultyStore, randomFaults } from "../../src/store/faulty.ts";
import { MemoryStore } from "../../src/store/memory.ts";
import { RetryingStore } from "../../src/store/retrying.ts";
import { S3Store } from "../../src/store/s3.ts";
import { HurriedClock } from "../suites/hurried-clock.ts";
import { objectStoreSuite } from "../suites/object-store-suite.ts";
import { startS3Server } from "../suites/s3-server.ts";

objectStoreSuite("memory", async () => ({ store: new MemoryStore(), cleanup: async () => {} }));

objectStoreSuite("directory", async () => {
  const root = await mkdtemp(join(tmpdir(), "s3block-store-"));
  return { store: new DirectoryStore({ root }), cleanup: () => rm(root, { recursive: true }) };
});

objectStoreSuite("S3", async () => {
  const server = await startS3Server();
  const { accessKeyId, secretAccessKey } = server;
  const store = new S3Store(
    {
      bucket: server.bucket,
      prefix: "some/prefix",
      endpoints: [server.endpoint],
      region: "us-east-1",
      forcePathStyle: true,
      credentials: { kind: "static", accessKeyId, secretAccessKey },
    },
    systemClock,
  );
  return { store, cleanup: () => server.stop() };
});

objectStoreSuite("retrying over a faulty one", async () => {
  const clock = new HurriedClock();
  const random = new SeededRandom(7);
  const faults = randomFaults(random, { refused: 0.2, "lost-reply": 0.2, delayMs: 50 });
  const faulty = new FaultyStore(new MemoryStore({ clock }), faults, { clock, random });
  return { store: new RetryingStore(faulty, { clock, random, log: nullLog }), cleanup: async () => {} };
});
