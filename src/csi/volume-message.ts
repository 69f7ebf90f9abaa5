/**
 * A volume as CSI shows it. Its context repeats, in the words of the StorageClass, where the volume lives and how it
 * was made: for people, and for a class to be compared with. No call of this driver depends on it.
 */
import type { LocationRecord, VolumeMeta } from "../volume/format/control-records.ts";
import type { Volume } from "./messages.ts";
import { locationContext } from "./parameters.ts";

export function volumeMessage(meta: VolumeMeta, location: LocationRecord | undefined): Volume {
  return {
    volumeId: meta.id,
    capacityBytes: String(meta.sizeBytes),
    volumeContext: {
      ...locationContext(location),
      durability: meta.durability,
      blockSize: String(meta.blockSizeBytes),
      ...(meta.fsType === undefined ? {} : { fsType: meta.fsType }),
    },
  };
}
