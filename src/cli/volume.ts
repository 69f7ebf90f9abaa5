/**
 * s3block volume: volumes without Kubernetes, straight on the store. Output is one JSON object a line, for people and
 * programs alike.
 */
import { OperationError } from "../base/errors.ts";
import { nullLog } from "../base/log.ts";
import { systemClock } from "../base/system-clock.ts";
import { systemRandom } from "../base/system-random.ts";
import { Redactor } from "../observability/redaction.ts";
import type { Catalog } from "../volume/catalog.ts";
import type { VolumeMeta } from "../volume/format/control-records.ts";
import { mustVolumeId } from "../volume/identity.ts";
import { parseSize } from "./config.ts";
import type { ParsedArguments } from "./config.ts";
import type { FlagValues } from "./flags.ts";
import { mustProbeOwnStore, Stores } from "./stores.ts";
import { storeSettings } from "./store-settings.ts";

const requestDeadlineMs = 20_000;

type Action = (catalog: Catalog, args: readonly string[], values: FlagValues) => Promise<void>;

const actions: Readonly<Record<string, { arguments: number; run: Action }>> = {
  create: { arguments: 2, run: create },
  list: { arguments: 0, run: list },
  show: { arguments: 1, run: show },
  delete: { arguments: 1, run: (catalog, [id]) => catalog.delete(mustVolumeId(id)) },
};

export async function runVolume({ values, positional }: ParsedArguments): Promise<void> {
  const [name = "", ...args] = positional;
  const action = Object.hasOwn(actions, name) ? actions[name] : undefined;
  if (action === undefined || args.length !== action.arguments) {
    throw new OperationError("invalid", "say volume create <id> <size>, list, show <id> or delete <id>");
  }
  const settings = storeSettings(values);
  const stores = new Stores({
    settings,
    clock: systemClock,
    random: systemRandom,
    log: nullLog,
    redactor: new Redactor(),
    limits: { deadlineMs: requestDeadlineMs },
  });
  try {
    if (name === "create") await mustProbeOwnStore(stores, settings);
    await action.run(stores.catalog(stores.own(), "command line"), args, values);
  } finally {
    await stores.close();
  }
}

async function create(catalog: Catalog, [id, sizeText]: readonly string[], values: FlagValues): Promise<void> {
  const sizeBytes = parseSize(sizeText);
  if (Number.isNaN(sizeBytes)) {
    throw new OperationError("invalid", "the size is a number with KiB, MiB, GiB or TiB", {
      context: { size: JSON.stringify(sizeText.slice(0, 64)) },
    });
  }
  const { blockSize: blockSizeBytes, durability } = values;
  const volumeId = mustVolumeId(id);
  print(await catalog.create({ id: volumeId, name: id, sizeBytes, blockSizeBytes, durability, parameters: {} }));
}

async function list(catalog: Catalog): Promise<void> {
  let page = await catalog.list();
  for (;;) {
    for (const meta of page.volumes) print(meta);
    if (page.next === undefined) return;
    page = await catalog.list({ after: page.next });
  }
}

async function show(catalog: Catalog, [id]: readonly string[]): Promise<void> {
  const volumeId = mustVolumeId(id);
  const meta = await catalog.must(volumeId);
  const publication = await catalog.getPublication(volumeId);
  print(meta, publication === undefined ? {} : { publishedTo: publication.nodeId });
}

function print(meta: VolumeMeta, more: Record<string, string> = {}): void {
  const { id, name, sizeBytes, blockSizeBytes, durability, fsType, createdMs } = meta;
  const created = new Date(createdMs).toISOString();
  const line = { id, name, sizeBytes, blockSizeBytes, durability, fsType, created, ...more };
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
