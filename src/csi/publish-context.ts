/**
 * What the controller tells the node about a publication: everything the node needs to attach the volume, so that
 * the node asks no store and a hand-written PersistentVolume works without attributes. Built from the catalog at every
 * ControllerPublishVolume; secrets never stand in it.
 */
import type { StoreLocation } from "../attachment/data-plane.ts";
import { type FileSystemType, mustFileSystemType } from "../host/filesystem.ts";
import type { LocationRecord } from "../volume/format/control-records.ts";
import type { Durability } from "../volume/identity.ts";
import type { TextMap } from "./messages.ts";
import { CsiError } from "./status.ts";
import { status as code } from "@grpc/grpc-js";

export interface PublishContext {
  /** From 1; lets the data plane see that the publication is still valid. */
  publication: number;
  readOnly: boolean;
  durability: Durability;
  location: StoreLocation;
  fsType: FileSystemType | undefined;
}

export function encodePublishContext(
  context: Omit<PublishContext, "location"> & { location: LocationRecord | undefined },
): Record<string, string> {
  const { location, fsType } = context;
  return {
    publication: String(context.publication),
    readOnly: String(context.readOnly),
    durability: context.durability,
    ...(location === undefined ? {} : { url: location.url, endpoint: location.endpoint, region: location.region }),
    ...(fsType === undefined ? {} : { fsType }),
  };
}

/** FAILED_PRECONDITION where the context is not one that ControllerPublishVolume of this driver gave. */
export function decodePublishContext(fields: TextMap): PublishContext {
  const publication = Number(fields.publication);
  const { readOnly, durability } = fields;
  const isOurs =
    /^[1-9]\d{0,15}$/.test(fields.publication ?? "") &&
    Number.isSafeInteger(publication) &&
    (readOnly === "true" || readOnly === "false") &&
    (durability === "s3" || durability === "local");
  if (!isOurs) {
    throw new CsiError(
      code.FAILED_PRECONDITION,
      "in-use",
      "publish_context holds no publication: the volume must be published to this node by ControllerPublishVolume first",
    );
  }
  return {
    publication,
    readOnly: readOnly === "true",
    durability,
    location: { url: fields.url ?? "", endpoint: fields.endpoint ?? "", region: fields.region ?? "" },
    fsType: fields.fsType === undefined ? undefined : mustFileSystemType(fields.fsType),
  };
}
