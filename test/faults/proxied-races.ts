/** Races for a volume (ownership-race.ts) in real time on a real S3 server, behind a proxy that loses replies. */
import { nullLog } from "../../src/base/log.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { systemClock } from "../../src/base/system-clock.ts";
import { openStore } from "../../src/store/open-store.ts";
import { startS3Server } from "../suites/s3-server.ts";
import { type RaceResult, runRace } from "./ownership-race.ts";
import { type Fate, startUnreliableProxy } from "./unreliable-proxy.ts";

const NODES = 3;

export interface ProxiedRaceTotals extends RaceResult {
  /** Conditional puts that reached the proxy, by their fate. */
  puts: Readonly<Record<Fate, number>>;
}

/** At least `puts` conditional puts. Rejects at the first thing that must not be. */
export async function proxiedRaces(puts: number, seed: number): Promise<ProxiedRaceTotals> {
  const random = new SeededRandom(seed);
  const server = await startS3Server();
  const fateOf = ({ isConditionalPut }: { isConditionalPut: boolean }): Fate | undefined => {
    if (!isConditionalPut) return undefined;
    const draw = random.fraction();
    if (draw < 0.2) return "lose-reply";
    if (draw < 0.24) return "late";
    return draw < 0.28 ? "conflict" : "pass";
  };
  const proxy = await startUnreliableProxy({ port: server.port, fateOf, lateMs: () => random.below(2000) });
  const { accessKeyId, secretAccessKey, bucket } = server;
  const settings = {
    url: `s3://${bucket}/races`,
    endpoints: [proxy.endpoint],
    credentials: { kind: "static" as const, accessKeyId, secretAccessKey },
  };
  const clock = systemClock;
  const stores = Array.from({ length: NODES }, () => openStore(settings, { clock, random, log: nullLog }));
  try {
    const isDone = (): boolean => Object.values(proxy.counts).reduce((sum, count) => sum + count, 0) >= puts;
    const result = await runRace({ clock, random, volumeId: "race", stores, isDone, peaceMs: 1000 });
    return { ...result, puts: { ...proxy.counts } };
  } finally {
    await Promise.all(stores.map((store) => store.close()));
    await proxy.stop();
    await server.stop();
  }
}
