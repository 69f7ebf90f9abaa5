/**
 * Runs a command on a kernel that has nbd: this machine's own where it has the module and we are root, else a
 * User-Mode-Linux guest, which boots as an ordinary process in about two seconds (measured: 1.6 s).
 * As a program: `node test/kernel/guest.ts [--guest] [--memory MIB] [--timeout SECONDS] [--share DIRECTORY] -- command…`
 * exits with the command's status.
 *
 * What the command finds in the guest: this machine's files at the same paths, read-only beneath an overlay whose
 * changes live in the guest's memory, so that nothing it writes reaches the machine (but for shared directories);
 * its own /dev, /proc, /sys, /run, process table, loopback interface; TMPDIR on a tmpfs; nbd loaded with max_part=0;
 * `modprobe` for the guest's other modules; root. A guest ends with its command: daemons left behind die with it.
 * It proves correctness, not speed: one CPU, a system call costs some 50 µs.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";

export interface KernelRun {
  /** Program and arguments; the program is looked up in PATH. */
  command: readonly string[];
  /** Added to the environment {PATH, HOME, TMPDIR, NO_COLOR}. */
  environment?: Readonly<Record<string, string>>;
  /** The current directory of the command; default: this process's own. */
  directory?: string;
  /** Everything is killed after this time; default 120,000. */
  timeoutMs?: number;
  /** Memory of the guest, its tmpfs included; default 2,048. */
  memoryMib?: number;
  /** Directories of the machine that the guest may write, at the same path (no locks, no device nodes there). */
  shares?: readonly string[];
  /** At most four files that a guest has as disks, /dev/ubda, /dev/ubdb, …: of them stays what it has synced. */
  disks?: readonly string[];
  /** Cuts a guest's power: what was in its memory is lost, and the run rejects with `PowerCut`. */
  powerCut?: AbortSignal | undefined;
  /** Called with each piece of output as it comes. */
  onOutput?: (text: string) => void;
}

export interface KernelResult {
  /** Exit status of the command, 128 + n where signal n ended it. */
  status: number;
  /** What the command wrote to its standard output and error. */
  output: string;
  /** The tail of the guest's kernel log when the status is not 0; empty on the machine's own kernel. */
  kernelLog: string;
}

/** The guest ended because its power was cut; what its command had said is in `output`. */
export class PowerCut extends Error {
  readonly output: string;

  constructor(output: string) {
    super("the guest's power was cut");
    this.output = output;
  }
}

const linuxPath = "/usr/bin/linux.uml";
const modulesPath = "/usr/lib/uml/modules";
const kernelMapCount = 1048576;
const installHint = "run test/install/uml.sh as root (it installs the Debian package user-mode-linux)";
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const repository = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const compileCache = join(repository, ".cache/compile");

/** Runs the command on this machine's kernel where that has nbd and we are root, else in a guest. */
export async function runOnKernel(run: KernelRun): Promise<KernelResult> {
  return machineHasNbd() ? runOnMachine(run) : runInGuest(run);
}

/** True when this machine's own kernel has nbd, loading the module (max_part=0) where that is possible. */
export function machineHasNbd(): boolean {
  if (process.getuid?.() !== 0) return false;
  if (existsSync("/sys/module/nbd")) return true;
  try {
    execFileSync("modprobe", ["nbd", "max_part=0"], { stdio: "ignore", timeout: 10_000, env: { PATH: systemPath } });
  } catch {
    return false;
  }
  return existsSync("/sys/module/nbd");
}

async function runOnMachine(run: KernelRun): Promise<KernelResult> {
  const directory = mkdtempSync(join(tmpdir(), "s3block-kernel-"));
  try {
    const [program, ...words] = run.command;
    const child = spawnLeashed(directory, [program, ...words], {
      directory: run.directory ?? process.cwd(),
      environment: { ...baseEnvironment(), TMPDIR: directory, ...run.environment },
    });
    const transcript = new Transcript(run.onOutput);
    transcript.begin();
    child.stdout?.on("data", (bytes: Buffer) => transcript.add(bytes));
    child.stderr?.on("data", (bytes: Buffer) => transcript.add(bytes));
    const status = await endOf(child, run.timeoutMs ?? 120_000, directory);
    return { status, output: transcript.output, kernelLog: "" };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Boots a guest, runs the command in it and ends it. Rejects when it does not boot or not end in time. */
export async function runInGuest(run: KernelRun): Promise<KernelResult> {
  for (const path of [linuxPath, modulesPath]) {
    if (!existsSync(path)) throw new Error(`no kernel to test on: ${path} is missing; ${installHint}`);
  }
  allowManyMappings();
  compileAhead();
  const memoryMib = run.memoryMib ?? 2_048;
  const exchange = mkdtempSync(join(tmpdir(), "s3block-guest-"));
  const marker = `guest-${randomBytes(8).toString("hex")}`;
  const letSleep = keepProcessorsAwake();
  try {
    writeFileSync(join(exchange, "init"), initScript(run, marker), { mode: 0o755 });
    const words = [
      linuxPath,
      `mem=${memoryMib}M`,
      "rootfstype=hostfs",
      "rootflags=/",
      "ro",
      `init=${join(exchange, "init")}`,
      "con=null",
      "con0=fd:0,fd:1",
      "quiet",
      "loglevel=1",
      "random.trust_cpu=on",
      `uml_dir=${exchange}/`,
      ...(run.disks ?? []).map((path, index) => `ubd${index}=${resolve(path)}`),
    ];
    const environment = { PATH: systemPath, TMPDIR: memoryDirectory(memoryMib), HOME: exchange, ...preload() };
    const child = spawnLeashed(exchange, words, { directory: "/", environment });
    const transcript = new Transcript(run.onOutput, marker, () => killGroup(child));
    child.stdout?.on("data", (bytes: Buffer) => transcript.add(bytes));
    child.stderr?.on("data", (bytes: Buffer) => transcript.addBoot(bytes));
    const cut = (): void => killGroup(child);
    run.powerCut?.addEventListener("abort", cut);
    const ended = await endOf(child, run.timeoutMs ?? 120_000, exchange)
      .catch((error: unknown) => {
        throw new Error(`${describe(error)}\n${transcript.boot}\n${transcript.output}`);
      })
      .finally(() => run.powerCut?.removeEventListener("abort", cut));
    if (run.powerCut?.aborted === true) throw new PowerCut(transcript.output);
    const status = transcript.status;
    if (status === undefined) {
      throw new Error(`the guest ended by itself status=${ended}\n${transcript.boot}\n${transcript.output}`);
    }
    return { status, output: transcript.output, kernelLog: transcript.kernelLog };
  } finally {
    letSleep();
    rmSync(exchange, { recursive: true, force: true });
  }
}

/**
 * Takes the guest's console apart: what comes before the marker is boot talk, then the command's output up to
 * "<marker> <status>", then the kernel's log up to the next marker, upon which `onEnd` is called.
 */
class Transcript {
  boot = "";
  output = "";
  kernelLog = "";
  status: number | undefined;
  readonly #onOutput: ((text: string) => void) | undefined;
  readonly #marker: string | undefined;
  readonly #onEnd: () => void;
  #state: "boot" | "output" | "log" = "boot";
  #pending = "";
  #decoder = new TextDecoder();

  constructor(onOutput: ((text: string) => void) | undefined, marker?: string, onEnd: () => void = () => {}) {
    this.#onOutput = onOutput;
    this.#marker = marker;
    this.#onEnd = onEnd;
  }

  begin(): void {
    this.#state = "output";
  }

  addBoot(bytes: Buffer): void {
    this.boot += bytes.toString();
  }

  add(bytes: Buffer): void {
    const text = this.#decoder.decode(bytes, { stream: true });
    if (this.#marker === undefined) {
      this.#emit(text);
      return;
    }
    const lines = (this.#pending + text.replaceAll("\r", "")).split("\n");
    this.#pending = lines.pop() ?? "";
    for (const line of lines) this.#line(line, this.#marker);
  }

  #line(line: string, marker: string): void {
    const at = line.indexOf(marker);
    if (at < 0) {
      if (this.#state === "boot") this.boot += `${line}\n`;
      else if (this.#state === "output") this.#emit(`${line}\n`);
      else this.kernelLog += `${line}\n`;
    } else if (this.#state === "boot") {
      this.#state = "output";
    } else if (this.#state === "output") {
      if (at > 0) this.#emit(line.slice(0, at));
      this.status = Number.parseInt(line.slice(at + marker.length), 10);
      this.#state = "log";
    } else {
      this.#onEnd();
    }
  }

  #emit(text: string): void {
    this.output += text;
    this.#onOutput?.(text);
  }
}

/**
 * Starts a program as the leader of a group of its own (a guest whose starter leads the group would leave it) which does
 * not outlive this process: a shell beside it holds the other end of a pipe, and when that ends, however this process
 * ended, removes `scratch` and kills the group.
 */
function spawnLeashed(
  scratch: string,
  words: readonly string[],
  where: { directory: string; environment: Record<string, string> },
): ChildProcess {
  const script = `scratch=$1; shift
({ cat <&3; rm -rf "$scratch"; kill -9 0; } >/dev/null 2>&1 &)
exec "$@" </dev/null 3<&-`;
  return spawn("/bin/sh", ["-c", script, "sh", scratch, ...words], {
    cwd: where.directory,
    env: where.environment,
    stdio: ["ignore", "pipe", "pipe", "pipe"],
    detached: true,
  });
}

/**
 * Waits for the child, killing its whole group at the deadline; the group is gone afterwards either way. Where this
 * process exits first, it takes `scratch` with it: the shell that would remove it is of the group.
 */
async function endOf(child: ChildProcess, timeoutMs: number, scratch: string): Promise<number> {
  const onExit = (): void => {
    killGroup(child);
    rmSync(scratch, { recursive: true, force: true });
  };
  process.once("exit", onExit);
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    killGroup(child);
  }, timeoutMs);
  try {
    return await new Promise<number>((fulfil, reject) => {
      child.once("error", reject);
      child.once("close", (code, signal) => {
        if (late) reject(new Error(`killed: the command took longer than ${timeoutMs} ms`));
        else fulfil(code ?? (signal === "SIGKILL" ? 137 : 143));
      });
    });
  } finally {
    clearTimeout(timer);
    process.off("exit", onExit);
    killGroup(child);
  }
}

function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch {
    // The group is gone already.
  }
}

function baseEnvironment(): Record<string, string> {
  const own = (process.env["PATH"] ?? "").split(delimiter).filter((part) => part.startsWith("/"));
  const path = [...new Set([join(repository, "node_modules/.bin"), ...own, ...systemPath.split(":")])].join(":");
  return { PATH: path, HOME: "/root", NO_COLOR: "1", LC_ALL: "C.UTF-8", NODE_COMPILE_CACHE: compileCache };
}

/**
 * Compiles the driver's modules on this machine: Node finds them compiled in the guest, where each process of the
 * driver then starts in half the time (measured: 1.4 s instead of 3.1 s). Entries are keyed by content, never stale.
 */
function compileAhead(): void {
  const roots = ["cli/server", "cli/controller", "cli/node", "cli/hosted-volumes", "volume/engine"];
  const imports = roots.map((name) => `await import(${JSON.stringify(join(repository, "src", `${name}.ts`))});`);
  const environment = { PATH: systemPath, NODE_COMPILE_CACHE: compileCache };
  const words = ["--input-type=module", "--eval", imports.join("")];
  try {
    execFileSync(process.execPath, words, { env: environment, stdio: "ignore", timeout: 30_000 });
  } catch {
    // Without it everything is slower and no different.
  }
}

function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

/** The guest's first process: makes the overlay root, moves into it, and runs the command there. */
function initScript(run: KernelRun, marker: string): string {
  const environment = { ...baseEnvironment(), TMPDIR: "/run/work", S3BLOCK_GUEST: "1", ...run.environment };
  const words = Object.entries(environment).map(([name, value]) => quote(`${name}=${value}`));
  const command = ["env", "-i", ...words, ...run.command.map(quote)].join(" ");
  const shares = (run.shares ?? []).map((path) => quote(resolve(path)));
  const mounts = shares.map((path) => `mount -t hostfs none ${path} -o ${path}`);
  const syncs = shares.map((path) => `sync -f ${path}`);
  return `#!/bin/sh
# Written by test/kernel/guest.ts.
export PATH=${systemPath}
mount -t proc proc /proc
modules=${modulesPath}/$(uname -r)
mount -t tmpfs -o size=90% tmpfs /tmp
insmod $modules/kernel/fs/overlayfs/overlay.ko || exit 1
mkdir /tmp/upper /tmp/work /tmp/root
mount -t overlay overlay -o lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work /tmp/root || exit 1
cd /tmp/root && mkdir -p .machine && pivot_root . .machine && cd / || exit 1
umount -l /.machine; rmdir /.machine
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd
mkdir -p /run/work /run/lock /lib/modules
ln -sfn $modules /lib/modules/$(uname -r)
hostname guest
ip link set lo up
modprobe nbd max_part=0 || insmod $modules/kernel/drivers/block/nbd.ko max_part=0
${mounts.join("\n")}
cd ${quote(resolve(run.directory ?? process.cwd()))} || exit 1
mkfifo /run/console
dmesg -C
cat /run/console &
reader=$!
echo ${marker}
${command} </dev/null >/run/console 2>&1
status=$?
# A daemon left behind may hold the pipe open for ever: what the command itself wrote is drained by then.
turns=0
while kill -0 $reader 2>/dev/null && [ $turns -lt 20 ]; do sleep 0.05; turns=$((turns + 1)); done
${syncs.join("\n")}
echo "${marker} $status"
[ $status -eq 0 ] || dmesg | tail -n 60
echo ${marker}
sleep 30
`;
}

/** Where the guest's memory is kept: it is a file, best on a tmpfs. */
function memoryDirectory(memoryMib: number): string {
  const shared = "/dev/shm";
  if (existsSync(shared)) {
    const { bavail, bsize } = statfsSync(shared);
    if (bavail * bsize > memoryMib * 2 ** 20) return shared;
  }
  return tmpdir();
}

/**
 * Keeps this machine's processors from sleeping until the answer is called: a guest is many processes that wake each other
 * all the time, and where the machine is a virtual one itself, waking a processor takes longer than the work that it wakes
 * for. Measured on such a one: tests of kernel devices took 12 s instead of 24.
 */
function keepProcessorsAwake(): () => void {
  try {
    const request = openSync("/dev/cpu_dma_latency", "w");
    writeSync(request, new Uint8Array(4));
    return () => closeSync(request);
  } catch {
    // Not root, a container, or a kernel without it: guests run all the same.
    return () => {};
  }
}

/** Each page of a guest's process may be a mapping of its own, beyond what a machine allows by default. */
function allowManyMappings(): void {
  const path = "/proc/sys/vm/max_map_count";
  if (Number(readFileSync(path, "utf8")) >= kernelMapCount) return;
  try {
    writeFileSync(path, String(kernelMapCount));
  } catch {
    // Not root, or a container: small guests run all the same.
  }
}

/** The preload library of uml-ptrace.c where this machine's CPU needs it, compiled once. */
function preload(): Record<string, string> {
  if (!/^flags\b.*\bamx_tile\b/m.test(readFileSync("/proc/cpuinfo", "utf8"))) return {};
  const source = fileURLToPath(new URL("uml-ptrace.c", import.meta.url));
  const cache = join(repository, "node_modules/.cache");
  const library = join(cache, "s3block-uml-ptrace.so");
  if (!existsSync(library)) {
    mkdirSync(cache, { recursive: true });
    const fresh = `${library}.${process.pid}`;
    const compiler = ["/usr/bin/tcc", "/usr/bin/cc"].find((path) => existsSync(path));
    if (compiler === undefined)
      throw new Error(`this CPU needs a preload library but no compiler is here; ${installHint}`);
    execFileSync(compiler, ["-shared", "-fPIC", "-nostdlib", "-o", fresh, source], { timeout: 30_000 });
    renameSync(fresh, library);
  }
  return { LD_PRELOAD: library };
}

function usage(): never {
  process.stderr.write(
    "usage: guest.ts [--guest] [--memory MIB] [--timeout SECONDS] [--share DIRECTORY] -- command [argument…]",
  );
  process.exit(2);
}

async function main(words: string[]): Promise<number> {
  const at = words.indexOf("--");
  if (at < 0 || at === words.length - 1) usage();
  const run: KernelRun = { command: words.slice(at + 1), onOutput: (text) => process.stdout.write(text) };
  const options = words.slice(0, at);
  const shares: string[] = [];
  let launch = runOnKernel;
  while (options.length > 0) {
    const name = options.shift();
    if (name === "--guest") launch = runInGuest;
    else if (name === "--memory") run.memoryMib = Number(options.shift());
    else if (name === "--timeout") run.timeoutMs = Number(options.shift()) * 1000;
    else if (name === "--share") shares.push(options.shift() ?? usage());
    else usage();
  }
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));
  const result = await launch({ ...run, shares });
  if (result.kernelLog !== "") process.stderr.write(`kernel log of the guest:\n${result.kernelLog}`);
  return result.status;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  process.exitCode = await main(process.argv.slice(2)).catch((error: unknown) => {
    process.stderr.write(`${describe(error)}\n`);
    return 1;
  });
}
