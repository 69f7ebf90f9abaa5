/**
 * One life of an application on SQLite: opens the database, which recovers it, checks all of it, says what it holds,
 * and commits until it is killed or its standard input ends.
 * Commit n adds row n to a journal that is never cut, replaces a blob of its own size and digest among some, and sets
 * the one counter to n, all in one transaction.
 * As a program: `sqlite-writer.ts FILE wal|delete`; lines "holds <n>" after the check, "begins <n>" and "commits <n>",
 * "done"; what is wrong with the database ends it with status 1.
 */
import { createHash } from "node:crypto";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import { describe } from "../../src/base/errors.ts";
import { SeededRandom } from "../../src/base/seeded-random.ts";

const blobs = 64;
const largestBlobBytes = 12_000;

/** What commit `number` puts into its blob. */
function blobOf(number: number): Buffer {
  const random = new SeededRandom(number);
  return random.bytes(random.below(largestBlobBytes));
}

function digest(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function open(file: string, mode: string): DatabaseSync {
  const database = new DatabaseSync(file);
  // EXTRA: without a WAL, FULL lets the last commits be undone by a loss of power.
  database.exec(`PRAGMA journal_mode = ${mode}; PRAGMA synchronous = EXTRA; PRAGMA cache_size = -512`);
  database.exec(`BEGIN;
    CREATE TABLE IF NOT EXISTS commits (number INTEGER PRIMARY KEY, digest TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS blobs (slot INTEGER PRIMARY KEY, number INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS byDigest ON commits (digest);
    INSERT OR IGNORE INTO counter VALUES (1, 0);
    COMMIT`);
  return database;
}

/** The number of the last commit; throws where anything that came before it is not there, or not whole. */
function check(database: DatabaseSync): number {
  const [{ integrity_check: verdict }] = database.prepare("PRAGMA integrity_check").all();
  if (verdict !== "ok") throw new Error(`integrity_check says ${String(verdict)}`);
  const row = database.prepare("SELECT number FROM counter").get();
  const last = Number(row?.["number"]);
  const sums = database.prepare("SELECT count(*) AS count, coalesce(max(number), 0) AS newest FROM commits").get();
  if (Number(sums?.["count"]) !== last || Number(sums?.["newest"]) !== last) {
    throw new Error(`the counter says ${last}, the journal has ${String(sums?.["count"])} rows`);
  }
  const query = "SELECT blobs.number, body, digest FROM blobs LEFT JOIN commits ON commits.number = blobs.number";
  const rows = database.prepare(query).all();
  if (rows.length !== Math.min(last, blobs)) throw new Error(`${rows.length} blobs are there after commit ${last}`);
  for (const { number, body, digest: wanted } of rows) {
    if (digest(body as Uint8Array) !== wanted) throw new Error(`the blob of commit ${String(number)} is another`);
    if (Number(number) <= last - blobs) throw new Error(`the blob of commit ${String(number)} was not replaced`);
  }
  return last;
}

/** Resolves once the line has left this process, whoever is slow to read it: a killed one tells nothing any more. */
function tell(line: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(`${line}\n`, (error) => (error ? reject(error) : resolve()));
  });
}

async function commitOn(database: DatabaseSync, first: number): Promise<void> {
  let isOver = false;
  process.stdin.resume().once("end", () => (isOver = true));
  const addCommit = database.prepare("INSERT INTO commits VALUES (?, ?)");
  const putBlob = database.prepare("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)");
  const setCounter = database.prepare("UPDATE counter SET number = ?");
  for (let number = first; !isOver; number += 1) {
    const body = blobOf(number);
    await tell(`begins ${number}`);
    database.exec("BEGIN IMMEDIATE");
    addCommit.run(number, digest(body));
    putBlob.run(number % blobs, number, body);
    setCounter.run(number);
    database.exec("COMMIT");
    await tell(`commits ${number}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
  database.close();
  process.stdout.write("done\n");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [file, mode] = process.argv.slice(2);
  try {
    const database = open(file, mode);
    const last = check(database);
    process.stdout.write(`holds ${last}\n`);
    await commitOn(database, last + 1);
  } catch (error) {
    process.stderr.write(`${describe(error)}\n`);
    process.exit(1);
  }
}
