/**
 * The messages of proto/csi.proto that this driver serves, in the form that @grpc/proto-loader makes of them with the
 * options of grpc-server.ts: field names in camelCase, 64-bit numbers as text, enumerations by name, every field
 * there (empty where the caller left it out; a missing message is null). Requests are as the caller sent them:
 * nothing is to be trusted before requests.ts has looked at it.
 */
export type TextMap = Readonly<Record<string, string>>;
/** A 64-bit number as decimal text. */
export type Int64 = string;

export interface CapacityRange {
  requiredBytes: Int64;
  limitBytes: Int64;
}

export interface MountCapability {
  fsType: string;
  mountFlags: string[];
  volumeMountGroup: string;
}

export interface VolumeCapability {
  accessType?: "block" | "mount";
  block?: object | null;
  mount?: MountCapability | null;
  /** The name of the mode; a number where the caller speaks of a newer mode. */
  accessMode: { mode: string | number } | null;
}

export interface Volume {
  capacityBytes: Int64;
  volumeId: string;
  volumeContext: TextMap;
}

export interface CreateVolumeRequest {
  name: string;
  capacityRange: CapacityRange | null;
  volumeCapabilities: VolumeCapability[];
  parameters: TextMap;
  secrets: TextMap;
  volumeContentSource: object | null;
  mutableParameters: TextMap;
}

export interface CreateVolumeResponse {
  volume: Volume;
}

export interface DeleteVolumeRequest {
  volumeId: string;
  secrets: TextMap;
}

export interface ControllerPublishVolumeRequest {
  volumeId: string;
  nodeId: string;
  volumeCapability: VolumeCapability | null;
  readonly: boolean;
  secrets: TextMap;
  volumeContext: TextMap;
}

export interface ControllerPublishVolumeResponse {
  publishContext: TextMap;
}

export interface ControllerUnpublishVolumeRequest {
  volumeId: string;
  nodeId: string;
  secrets: TextMap;
}

export interface ValidateVolumeCapabilitiesRequest {
  volumeId: string;
  volumeContext: TextMap;
  volumeCapabilities: VolumeCapability[];
  parameters: TextMap;
  secrets: TextMap;
  mutableParameters: TextMap;
}

export interface ValidateVolumeCapabilitiesResponse {
  confirmed?: { volumeContext: TextMap; volumeCapabilities: VolumeCapability[]; parameters: TextMap };
  message?: string;
}

export interface ListVolumesRequest {
  maxEntries: number;
  startingToken: string;
}

export interface ListVolumesResponse {
  entries: { volume: Volume; status: { publishedNodeIds: string[] } }[];
  nextToken: string;
}

export interface NodeStageVolumeRequest {
  volumeId: string;
  publishContext: TextMap;
  stagingTargetPath: string;
  volumeCapability: VolumeCapability | null;
  secrets: TextMap;
  volumeContext: TextMap;
}

export interface NodeUnstageVolumeRequest {
  volumeId: string;
  stagingTargetPath: string;
}

export interface NodePublishVolumeRequest {
  volumeId: string;
  publishContext: TextMap;
  stagingTargetPath: string;
  targetPath: string;
  volumeCapability: VolumeCapability | null;
  readonly: boolean;
  secrets: TextMap;
  volumeContext: TextMap;
}

export interface NodeUnpublishVolumeRequest {
  volumeId: string;
  targetPath: string;
}

export interface NodeGetVolumeStatsRequest {
  volumeId: string;
  volumePath: string;
  stagingTargetPath: string;
}

export interface VolumeUsage {
  available?: Int64;
  total: Int64;
  used?: Int64;
  unit: "BYTES" | "INODES";
}

export interface NodeGetVolumeStatsResponse {
  usage: VolumeUsage[];
}
