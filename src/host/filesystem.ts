/**
 * Filesystems on our devices: which there are, making, checking, and the options they may be mounted with.
 * - mkfs is told every feature by name, so that the result mounts on the oldest supported kernel (5.15) whatever the
 *   version and configuration of mkfs; it never discards, and never makes more than it is told.
 * - Whether a device may be formatted is decided by the caller alone (csi/staged-filesystem.ts), not here.
 * - Mount options that came from a request pass an allow list: none of them can name a device, a path or a helper,
 *   panic the node, or switch off the flushes that durability rests on.
 */
import { OperationError } from "../base/errors.ts";
import { failedProgram, lastWords, mustRunProgram, runProgram } from "./process.ts";

export type FileSystemType = "ext4" | "xfs";
export const DEFAULT_FILE_SYSTEM: FileSystemType = "ext4";

const probeTimeoutMs = 60_000;
const makeTimeoutMs = 15 * 60_000;
const checkTimeoutMs = 60 * 60_000;
const fileSystemBlockBytes = 4096;

/** Smallest filesystem that its mkfs makes: mkfs.xfs refuses below 300 MiB; ext4 needs room for its tables. */
export const MIN_FILE_SYSTEM_BYTES: Readonly<Record<FileSystemType, number>> = {
  ext4: 256 * 1024,
  xfs: 300 * 1024 * 1024,
};

/** Options for every mount of the type: an xfs clone carries its origin's UUID, which xfs refuses without "nouuid". */
const ownOptions: Readonly<Record<FileSystemType, readonly string[]>> = { ext4: [], xfs: ["nouuid"] };

const ext4Features =
  "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file," +
  "dir_nlink,extra_isize,metadata_csum";
const xfsMetadata = "crc=1,finobt=1,inobtcount=1,reflink=1,bigtime=1,rmapbt=0";

const commonMountOptions = [
  /^(no)?(atime|diratime|relatime|suid|dev|exec)$/,
  /^(strictatime|lazytime|nolazytime|sync|dirsync|discard|nodiscard|rw|ro)$/,
  // A comma outside of quotes would begin another option, one that nobody has checked.
  /^(context|fscontext|defcontext|rootcontext)=("[A-Za-z0-9_.:,-]{1,256}"|[A-Za-z0-9_.:-]{1,256})$/,
];
const mountOptions: Readonly<Record<FileSystemType, readonly RegExp[]>> = {
  ext4: [
    /^(no)?(acl|user_xattr|delalloc|auto_da_alloc|init_itable|i_version)$/,
    /^data=(ordered|journal|writeback)$/,
    /^errors=(remount-ro|continue)$/,
    /^(commit|stripe|inode_readahead_blks|max_batch_time|min_batch_time|journal_ioprio)=\d{1,10}$/,
    /^(usrquota|grpquota|prjquota|noquota|quota)$/,
  ],
  xfs: [
    /^(inode32|inode64|largeio|nolargeio|swalloc|wsync|filestreams|ikeep|noikeep)$/,
    /^allocsize=\d{1,10}[kmg]?$/,
    /^(logbufs|sunit|swidth)=\d{1,10}$/,
    /^logbsize=\d{1,7}k?$/,
    /^(uquota|gquota|pquota|usrquota|grpquota|prjquota|noquota|uqnoenforce|gqnoenforce|pqnoenforce)$/,
  ],
};

/** Throws "invalid" for a type that is not served, naming those that are; "" is the default. */
export function mustFileSystemType(text: string): FileSystemType {
  if (text === "") return DEFAULT_FILE_SYSTEM;
  if (text === "ext4" || text === "xfs") return text;
  throw new OperationError("invalid", "filesystem type is not served: use ext4 or xfs", {
    context: { fsType: JSON.stringify(text.slice(0, 64)) },
  });
}

/** Throws "invalid" for the first option that is not allowed. Its value is not repeated: mount flags may be secret. */
export function checkMountOptions(type: FileSystemType, options: readonly string[]): void {
  for (const option of options) {
    if ([...commonMountOptions, ...mountOptions[type]].some((pattern) => pattern.test(option))) continue;
    throw new OperationError("invalid", "a mount option is not allowed for this filesystem: remove it", {
      context: { fsType: type, option: printableName(option) },
    });
  }
}

/** The options to mount with: the requested ones (checked before), ours, and "ro" where asked for. */
export function fileSystemMountOptions(
  type: FileSystemType,
  requested: readonly string[],
  readOnly: boolean,
): string[] {
  return [...(readOnly ? ["ro"] : []), ...ownOptions[type], ...requested];
}

/** What blkid finds on the device: "ext4", "xfs", another filesystem, "table:gpt" …; undefined where it finds nothing. */
export async function getSignature(device: string): Promise<string | undefined> {
  const args = ["--probe", "--output", "export", "--match-tag", "TYPE", "--match-tag", "PTTYPE", "--", device];
  const result = await runProgram("blkid", args, { timeoutMs: probeTimeoutMs, lockPath: device });
  if (result.status === 2) return undefined;
  if (result.status === 8) return "ambiguous";
  if (result.status !== 0) throw failedProgram("blkid", result);
  const lines = result.stdout.toString("utf8").split("\n");
  const type = lines.find((line) => line.startsWith("TYPE="));
  const table = lines.find((line) => line.startsWith("PTTYPE="));
  if (type !== undefined) return type.slice("TYPE=".length);
  return table === undefined ? "unknown" : `table:${table.slice("PTTYPE=".length)}`;
}

export interface NewFileSystem {
  device: string;
  type: FileSystemType;
  /** Of the filesystem, from the start of the device. The device reads as zeroes there. */
  sizeBytes: number;
}

/** Makes a filesystem; complete and on the device when it resolves. What was there before is gone. */
export async function makeFileSystem(options: NewFileSystem): Promise<void> {
  const blocks = Math.floor(options.sizeBytes / fileSystemBlockBytes);
  if (options.sizeBytes < MIN_FILE_SYSTEM_BYTES[options.type]) {
    throw new OperationError("invalid", "the volume is too small for this filesystem: make a larger one", {
      context: { fsType: options.type, sizeBytes: options.sizeBytes, minBytes: MIN_FILE_SYSTEM_BYTES[options.type] },
    });
  }
  if (options.type === "ext4") {
    // Without "assume_storage_prezeroed" the kernel would write zeroes over every inode table after the first mount.
    const extended = ["-E", "nodiscard,assume_storage_prezeroed=1"];
    const layout = ["-b", String(fileSystemBlockBytes), "-I", "256", "-m", "0", "-O", ext4Features];
    await mustRunProgram(
      "mke2fs",
      ["-q", "-F", "-t", "ext4", ...layout, ...extended, "--", options.device, `${blocks}`],
      {
        timeoutMs: makeTimeoutMs,
        lockPath: options.device,
      },
    );
    return;
  }
  const size = ["-d", `size=${blocks * fileSystemBlockBytes}`, "-b", `size=${fileSystemBlockBytes}`];
  const features = ["-m", xfsMetadata, ...(await newerXfsFeaturesOff())];
  await mustRunProgram("mkfs.xfs", ["-q", "-f", "-K", ...size, "-s", "size=4096", ...features, "--", options.device], {
    timeoutMs: makeTimeoutMs,
    lockPath: options.device,
  });
}

/** Features that kernel 5.15 lacks and that newer versions of mkfs.xfs switch on; older ones do not know their names. */
async function newerXfsFeaturesOff(): Promise<string[]> {
  const result = await mustRunProgram("mkfs.xfs", ["-V"], { timeoutMs: probeTimeoutMs });
  const version = /(\d+)\.(\d+)/.exec(result.stdout.toString("utf8") + result.stderr);
  const major = Number(version?.[1] ?? 0);
  const minor = Number(version?.[2] ?? 0);
  const atLeast = (wantedMajor: number, wantedMinor: number): boolean =>
    major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
  if (atLeast(6, 10)) return ["-i", "nrext64=0,sparse=1,exchange=0", "-n", "parent=0"];
  if (atLeast(5, 19)) return ["-i", "nrext64=0,sparse=1"];
  return ["-i", "sparse=1"];
}

/**
 * Brings an unmounted filesystem into a state that can be mounted: ext4 by e2fsck -p (replays the journal, repairs
 * what is safe), xfs by nothing: its log is replayed by mounting. Errors: "corrupt" where a person must decide.
 */
export async function checkFileSystem(device: string, type: FileSystemType): Promise<void> {
  if (type === "xfs") return;
  const result = await runProgram("e2fsck", ["-p", "--", device], { timeoutMs: checkTimeoutMs, lockPath: device });
  // e2fsck(8): 1 = errors corrected, 2 = corrected and a reboot is advised for a mounted root; 4 = errors are left.
  if ((result.status & ~3) === 0) return;
  if ((result.status & 4) !== 0) {
    throw new OperationError("corrupt", `the filesystem needs e2fsck by hand: ${lastWords(result)}`, {
      context: { device, status: result.status },
    });
  }
  throw failedProgram("e2fsck", result);
}

/** The part of an option before its value, if it is a plain word. */
function printableName(option: string): string {
  return /^[a-z0-9_-]{1,40}/i.exec(option)?.[0] ?? "(unprintable)";
}
