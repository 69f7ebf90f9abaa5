/**
 * PostgreSQL (Debian's, as its own user) with its data on a volume, and one client that inserts numbered rows, each a
 * transaction of its own. It is killed with all its processes at once; started again it recovers from its log.
 */
import { type ChildProcess, execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { chmod, chown, mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { type Application, CommitRecord, CommitTeller } from "./application.ts";
import { pause } from "./laboratory.ts";

const runFile = promisify(execFile);
const versionsPath = "/usr/lib/postgresql";
const user = "postgres";
/** Rows that the client is given at once; more than any round lasts. */
const rowsPerLife = 20_000;

/** Installs Debian's PostgreSQL where it is not; needs root. */
export function installPostgres(say: (line: string) => void): void {
  if (existsSync(versionsPath)) return;
  say("Debian packages: installing postgresql (apt-get)");
  const options = ["-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"];
  const install = (): void => {
    execFileSync("apt-get", ["install", ...options, "postgresql"], {
      env: { PATH: process.env["PATH"] ?? "", DEBIAN_FRONTEND: "noninteractive" },
      stdio: "ignore",
    });
  };
  try {
    install();
  } catch {
    execFileSync("apt-get", ["update", "-qq"], { stdio: "ignore" });
    install();
  }
}

export class PostgresApplication implements Application {
  readonly record: CommitRecord;
  readonly #data: string;
  readonly #sockets: string;
  readonly #programs: string;
  readonly #uid: number;
  readonly #gid: number;
  #server: ChildProcess | undefined;
  #client: CommitTeller | undefined;

  /** `directory` is on the volume, `sockets` is not. */
  constructor(directory: string, sockets: string) {
    this.record = new CommitRecord(`PostgreSQL ${directory}`);
    this.#data = join(directory, "data");
    this.#sockets = sockets;
    const [version] = readdirSync(versionsPath).toSorted((a, b) => Number(b) - Number(a));
    this.#programs = join(versionsPath, version, "bin");
    const fields = /^postgres:[^:]*:(\d+):(\d+):/m.exec(readFileSync("/etc/passwd", "utf8"));
    if (fields === null) throw new Error(`there is no user ${user}`);
    [this.#uid, this.#gid] = [Number(fields[1]), Number(fields[2])];
  }

  /** Makes an empty database with the table. */
  async prepare(): Promise<void> {
    for (const path of [this.#data, this.#sockets]) {
      await mkdir(path, { recursive: true, mode: 0o700 });
      await chown(path, this.#uid, this.#gid);
    }
    await this.#letThrough();
    await this.#run("initdb", ["--auth=trust", "--no-instructions", "--no-locale", "--encoding=UTF8", this.#data]);
    await this.#startServer();
    await this.#query("CREATE TABLE ledger (number bigint PRIMARY KEY, digest text NOT NULL)");
  }

  async start(): Promise<void> {
    await this.#letThrough();
    if (this.#server === undefined) await this.#startServer();
    const text = await this.#query(
      "SELECT count(*), coalesce(max(number), 0), coalesce(bool_and(digest = md5(number::text)), true) FROM ledger",
    );
    const [count, newest, isRight] = text.trim().split("|");
    if (count !== newest || isRight !== "t") throw new Error(`${this.record.name}: the table holds ${text}`);
    this.record.mustExplain(Number(newest));
    await this.#run("pg_amcheck", ["-h", this.#sockets, "--all", "--no-dependent-indexes", "--install-missing"]);
    this.#startClient(Number(newest) + 1);
    await this.untilCommitted(1);
  }

  async untilCommitted(commits: number): Promise<void> {
    await this.#client?.untilCommitted(commits);
  }

  async kill(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    const ended = server === undefined || server.exitCode !== null ? undefined : once(server, "exit");
    for (let pids = this.#processes(); pids.length > 0; pids = this.#processes()) {
      for (const pid of pids) {
        try {
          process.kill(pid, "SIGKILL");
        } catch {
          // It is gone already.
        }
      }
      await pause(10);
    }
    await ended;
    await this.#client?.kill();
    this.#client = undefined;
  }

  /** Its processes are those whose current directory is the data directory. */
  #processes(): number[] {
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => {
        try {
          return readlinkSync(`/proc/${pid}/cwd`) === this.#data && !isZombie(pid);
        } catch {
          return false;
        }
      });
  }

  /** Its user may pass through every directory above its data. */
  async #letThrough(): Promise<void> {
    for (let path = dirname(this.#data); path !== "/"; path = dirname(path)) await chmod(path, 0o755);
  }

  async #startServer(): Promise<void> {
    const settings = { listen_addresses: "", unix_socket_directories: this.#sockets, fsync: "on", autovacuum: "on" };
    const small = { shared_buffers: "4MB", max_connections: "10", checkpoint_timeout: "30s", max_wal_size: "32MB" };
    const flags = Object.entries({ ...settings, ...small }).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
    const server = spawn(join(this.#programs, "postgres"), ["-D", this.#data, ...flags], {
      ...this.#identity(),
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.#server = server;
    let said = "";
    server.stderr.on("data", (bytes: Buffer) => (said = (said + bytes.toString()).slice(-4000)));
    while (!(await this.#answers())) {
      if (server.exitCode !== null) throw new Error(`${this.record.name} does not start: ${said}`);
      await pause(50);
    }
  }

  #answers(): Promise<boolean> {
    return this.#run("pg_isready", ["-q", "-h", this.#sockets]).then(
      () => true,
      () => false,
    );
  }

  #startClient(first: number): void {
    const flags = ["-X", "-q", "-h", this.#sockets, "-v", "ON_ERROR_STOP=1", "-d", user];
    const client = spawn(join(this.#programs, "psql"), flags, {
      ...this.#identity(),
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.#client = new CommitTeller(this.record, client);
    const steps = Array.from({ length: rowsPerLife }, (_, index) => {
      const number = first + index;
      return `\\echo begins ${number}\nINSERT INTO ledger VALUES (${number}, md5('${number}'));\n\\echo commits ${number}\n`;
    });
    client.stdin.end(steps.join(""));
  }

  async #query(text: string): Promise<string> {
    return await this.#run("psql", ["-X", "-A", "-t", "-h", this.#sockets, "-d", user, "-c", text]);
  }

  async #run(program: string, words: readonly string[]): Promise<string> {
    const { stdout } = await runFile(join(this.#programs, program), words, this.#identity());
    return stdout;
  }

  #identity(): { uid: number; gid: number; cwd: string; env: Record<string, string> } {
    return { uid: this.#uid, gid: this.#gid, cwd: "/", env: { PATH: this.#programs, LC_ALL: "C", PGUSER: user } };
  }
}

function isZombie(pid: number): boolean {
  return / Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8").slice(0, 64));
}
