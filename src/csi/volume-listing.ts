/**
 * ListVolumes over all stores: the driver's own first, then every registered location by hash. A token says where the
 * page before ended ("<own or hash>:<volume id>"), not what it held: volumes that come and go between two pages harm
 * neither. What a listing shows is read from the store when it is asked for.
 */
import { status as code } from "@grpc/grpc-js";
import { isKind, OperationError } from "../base/errors.ts";
import { mapConcurrently } from "../volume/concurrency.ts";
import type { LocationRecord, VolumeMeta } from "../volume/format/control-records.ts";
import { isVolumeId, type VolumeId } from "../volume/identity.ts";
import type { ControllerOptions, VolumeCatalog } from "./catalogs.ts";
import type * as messages from "./messages.ts";
import { CsiError } from "./status.ts";
import { volumeMessage } from "./volume-message.ts";

const maxPageEntries = 1000;
const publicationConcurrency = 16;
const ownStore = "own";
const tokenPattern = /^(own|[0-9a-f]{16}):([a-z0-9-]*)$/;

interface Position {
  source: string;
  after: VolumeId | undefined;
}

interface Source {
  name: string;
  location: LocationRecord | undefined;
}

type Entry = messages.ListVolumesResponse["entries"][number];

export async function listVolumes(
  request: messages.ListVolumesRequest,
  options: Pick<ControllerOptions, "catalogFor" | "log">,
): Promise<messages.ListVolumesResponse> {
  if (request.maxEntries < 0) {
    throw new OperationError("invalid", "max_entries must not be negative", {
      context: { maxEntries: request.maxEntries },
    });
  }
  const limit = request.maxEntries === 0 ? maxPageEntries : Math.min(request.maxEntries, maxPageEntries);
  const start = parseToken(request.startingToken);
  const own = await options.catalogFor(undefined, {});
  const locations = [...(await own.listLocations())].toSorted(([a], [b]) => (a < b ? -1 : 1));
  const sources: Source[] = [
    { name: ownStore, location: undefined },
    ...locations.map(([name, location]) => ({ name, location })),
  ];
  // Locations are never removed: a token that names none was never given out.
  const first = sources.findIndex(({ name }) => name === start.source);
  if (first === -1) throw badToken();
  const entries: Entry[] = [];
  let after = start.after;
  for (const source of sources.slice(first)) {
    if (entries.length === limit) return { entries, nextToken: `${source.name}:` };
    const page = await listSource(source, { after, limit: limit - entries.length }, options);
    entries.push(...page.entries);
    if (page.next !== undefined) return { entries, nextToken: `${source.name}:${page.next}` };
    after = undefined;
  }
  return { entries, nextToken: "" };
}

async function listSource(
  source: Source,
  range: { after: VolumeId | undefined; limit: number },
  options: Pick<ControllerOptions, "catalogFor" | "log">,
): Promise<{ entries: Entry[]; next: VolumeId | undefined }> {
  try {
    const catalog = await options.catalogFor(source.location, {});
    const { limit, after } = range;
    const page = await catalog.list(after === undefined ? { limit } : { limit, after });
    const entries = await mapConcurrently(page.volumes, publicationConcurrency, (meta) =>
      entryOf(catalog, meta, source.location),
    );
    return { entries, next: page.next };
  } catch (error) {
    // A bucket that needs keys of its own cannot be listed: this call brings none. Others must still be seen.
    if (source.location === undefined || !isKind(error, "invalid", "not-found")) throw error;
    options.log.warn("a location cannot be listed with the driver's own keys", {
      location: source.location.url,
      error: error.message,
    });
    return { entries: [], next: undefined };
  }
}

async function entryOf(catalog: VolumeCatalog, meta: VolumeMeta, location: LocationRecord | undefined): Promise<Entry> {
  const publication = await catalog.getPublication(meta.id);
  return {
    volume: volumeMessage(meta, location),
    status: { publishedNodeIds: publication === undefined ? [] : [publication.nodeId] },
  };
}

function parseToken(token: string): Position {
  if (token === "") return { source: ownStore, after: undefined };
  const [, source, after] = tokenPattern.exec(token) ?? [];
  if (source === undefined || (after !== "" && !isVolumeId(after))) throw badToken();
  return { source, after: after === "" ? undefined : after };
}

function badToken(): CsiError {
  return new CsiError(code.ABORTED, "invalid", "starting_token is not one that this driver gave: list from the start");
}
