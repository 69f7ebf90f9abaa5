/** All targets by name. */
import { cacheTargets } from "./targets/cache.ts";
import { grpcTargets } from "./targets/grpc.ts";
import { journalTargets } from "./targets/journal.ts";
import { nbdTargets } from "./targets/nbd.ts";
import { netlinkTargets } from "./targets/netlink.ts";
import { s3Targets } from "./targets/s3-answers.ts";
import { storedFormats } from "./targets/stored-formats.ts";
import { volumeTargets } from "./targets/stored-volume.ts";
import { textTargets } from "./targets/texts.ts";
import type { MakeTarget } from "./target.ts";

export const targets: Readonly<Record<string, MakeTarget>> = {
  ...Object.fromEntries(storedFormats().map((target) => [target.name, () => target])),
  ...journalTargets,
  ...cacheTargets,
  ...textTargets,
  ...volumeTargets,
  ...nbdTargets,
  ...netlinkTargets,
  ...grpcTargets,
  ...s3Targets,
};
