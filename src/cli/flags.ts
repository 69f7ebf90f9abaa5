/**
 * The table of every flag of every command. Help text, environment variables and validation are made from it
 * (config.ts), and a test holds the chart against it: a flag that is not here does not exist.
 * A flag's name is its key in kebab-case, its environment variable S3BLOCK_ and its key in upper case.
 */
export type CommandName = "controller" | "server" | "node" | "volume" | "version";

export interface Flag {
  /** "size" is bytes with KiB, MiB, GiB, TiB; "list" may be repeated or hold commas. */
  type: "string" | "list" | "number" | "size" | "boolean";
  /** As text for sizes. Undefined: there is none. */
  default?: string | number | boolean;
  choices?: readonly string[];
  min?: number;
  max?: number;
  commands: readonly CommandName[];
  description: string;
}

export const commandDescriptions: Readonly<Record<CommandName, { summary: string; usage: string }>> = {
  controller: {
    summary: "the CSI controller: makes and deletes volumes, decides which node owns one",
    usage: "[flags]",
  },
  server: { summary: "the data plane: serves volumes to this machine's kernel and to NBD clients", usage: "[flags]" },
  node: { summary: "the CSI node service: file systems and mounts, on top of a server", usage: "[flags]" },
  volume: {
    summary: "makes, shows and deletes volumes without Kubernetes",
    usage: "create <id> <size> | list | show <id> | delete <id>  [flags]",
  },
  version: { summary: "prints the version", usage: "" },
};

const stores = ["controller", "server", "node", "volume"] as const;
const services = ["controller", "server", "node"] as const;

export const flags = {
  store: {
    type: "string",
    commands: stores,
    description: "where volumes live: s3://bucket/prefix, or file:///directory for tests and single machines",
  },
  s3Endpoint: {
    type: "list",
    commands: stores,
    description: "URL of the S3 service, several for round robin; default: the AWS endpoint of the region",
  },
  s3Region: {
    type: "string",
    default: "us-east-1",
    commands: stores,
    description: "S3 region that requests are signed for",
  },
  s3PathStyle: {
    type: "boolean",
    commands: stores,
    description: "address buckets by path instead of host name; default: where an endpoint is given",
  },
  s3CaFile: {
    type: "string",
    commands: stores,
    description: "PEM file of the authority that signed the endpoint's certificate",
  },
  s3CredentialsFile: {
    type: "string",
    commands: stores,
    description: "file with access key and secret, read again when it changes; default: the AWS_* variables",
  },
  csiSocket: {
    type: "string",
    default: "/csi/csi.sock",
    commands: ["controller", "node"],
    description: "unix socket that serves CSI",
  },
  controlSocket: {
    type: "string",
    default: "/run/s3block/control.sock",
    commands: ["server", "node"],
    description: "unix socket between node and server",
  },
  stateDir: {
    type: "string",
    default: "/var/lib/s3block",
    commands: ["server"],
    description: "directory for journal and cache; it must survive restarts and not lie on a volume of this server",
  },
  runDir: {
    type: "string",
    default: "/run/s3block",
    commands: ["server"],
    description: "directory for what is attached; it must survive a restart of the server, not of the machine",
  },
  nodeId: {
    type: "string",
    default: "",
    commands: ["server", "node"],
    description: "name of this node; default: the host name",
  },
  driverName: {
    type: "string",
    default: "s3block.csi",
    commands: ["controller", "node"],
    description: "name of the CSI driver",
  },
  metricsAddress: {
    type: "string",
    default: "",
    commands: services,
    description: "host:port for /metrics and /healthz, unencrypted, for whoever reaches it; default: not served",
  },
  logLevel: {
    type: "string",
    default: "info",
    choices: ["debug", "info", "warn", "error"],
    commands: [...services, "volume"],
    description: "least important lines that are logged",
  },
  threads: {
    type: "number",
    default: 0,
    max: 64,
    commands: ["server"],
    description: "threads that serve volumes; 0: one fewer than there are cores, at least 1, at most 4",
  },
  cacheSize: {
    type: "size",
    default: "4GiB",
    commands: ["server"],
    description: "disk space for the block cache in the state directory, over all threads; 0: no cache",
  },
  journalSize: {
    type: "size",
    default: "1GiB",
    min: 128 * 1024 ** 2,
    commands: ["server"],
    description: "disk space for the journal of each open volume: how long writes go on while the store is away",
  },
  mapMemory: {
    type: "size",
    default: "256MiB",
    min: 16 * 1024 ** 2,
    commands: ["server"],
    description: "memory for the maps of all open volumes",
  },
  uploadMemory: {
    type: "size",
    default: "160MiB",
    min: 64 * 1024 ** 2,
    commands: ["server"],
    description: "memory for uploads in flight of all open volumes and, while they leave it, for blocks read often",
  },
  maxVolumes: {
    type: "number",
    default: 256,
    min: 1,
    max: 100_000,
    commands: ["server"],
    description: "most volumes that may be open at the same time, attached and exported ones together",
  },
  uploadIntervalMs: {
    type: "number",
    default: 5000,
    min: 10,
    max: 3_600_000,
    commands: ["server"],
    description: "longest time that written data waits for its upload to begin",
  },
  listen: {
    type: "list",
    commands: ["server"],
    description:
      "serve volumes to NBD clients at unix:/path or, with TLS, tcp://host:port; the export's name is the volume id",
  },
  tlsCertFile: {
    type: "string",
    commands: ["server"],
    description: "PEM file with the certificate for tcp:// in --listen, read again for every client",
  },
  tlsKeyFile: {
    type: "string",
    commands: ["server"],
    description: "PEM file with the key of --tls-cert-file",
  },
  tlsCaFile: {
    type: "string",
    commands: ["server"],
    description:
      "PEM file of the authority that signs clients' certificates: who has one reads and writes every volume",
  },
  insecure: {
    type: "boolean",
    default: false,
    commands: ["server"],
    description:
      "serve tcp:// in --listen without TLS: anybody who reaches the port reads and writes every volume, unencrypted",
  },
  exportIdleMs: {
    type: "number",
    default: 5000,
    max: 3_600_000,
    commands: ["server"],
    description: "how long a volume stays open after its last NBD client left",
  },
  nbdTimeoutMs: {
    type: "number",
    default: 500,
    min: 100,
    max: 3_600_000,
    commands: ["server"],
    description:
      "how soon the kernel repeats requests that a killed server left unanswered; slow answers are no reason",
  },
  deadConnectionTimeoutSeconds: {
    type: "number",
    default: 86_400,
    min: 60,
    max: 30 * 86_400,
    commands: ["server"],
    description: "how long the kernel waits for a restarted server before I/O on its devices fails",
  },
  standby: {
    type: "boolean",
    default: false,
    commands: ["server"],
    description:
      "keep a second process that waits with everything loaded and goes on when the serving one dies; for more memory",
  },
  shutdownSeconds: {
    type: "number",
    default: 20,
    min: 1,
    max: 3600,
    commands: ["server"],
    description:
      "longest time for the orderly end after SIGTERM; what is not in the store by then stays in the journal",
  },
  kubeletDir: {
    type: "string",
    default: "/var/lib/kubelet",
    commands: ["node"],
    description: "the kubelet's root directory: targets outside it are refused",
  },
  maxVolumesPerNode: {
    type: "number",
    default: 128,
    min: 1,
    max: 100_000,
    commands: ["node"],
    description: "most volumes that may be attached to one node",
  },
  blockSize: {
    type: "number",
    default: 4096,
    commands: ["volume"],
    description: "block size of a new volume in bytes: 512 or 4096",
  },
  durability: {
    type: "string",
    default: "s3",
    choices: ["s3", "local"],
    commands: ["volume"],
    description: "when a flush of a new volume is answered: once in the store (s3) or on this machine's disk (local)",
  },
} as const satisfies Record<string, Flag>;

export type FlagKey = keyof typeof flags;

type ValueOf<Definition extends Flag> = Definition extends { type: "list" }
  ? string[]
  : Definition extends { type: "number" | "size" }
    ? number
    : Definition extends { type: "boolean" }
      ? boolean | (Definition extends { default: boolean } ? never : undefined)
      : Definition extends { choices: readonly (infer Choice)[]; default: string }
        ? Choice
        : Definition extends { default: string }
          ? string
          : string | undefined;

/** What a command works with; flags that it does not know are undefined and must not be read. */
export type FlagValues = { readonly [Key in FlagKey]: ValueOf<(typeof flags)[Key]> };

/** "s3PathStyle" → "s3-path-style". */
export function flagName(key: FlagKey): string {
  return key.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** "s3PathStyle" → "S3BLOCK_S3_PATH_STYLE". */
export function flagVariable(key: FlagKey): string {
  return `S3BLOCK_${flagName(key).replaceAll("-", "_").toUpperCase()}`;
}
