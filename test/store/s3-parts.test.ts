/** The parts of the S3 store by themselves: keys from a file that is rotated, and endpoints that take turns. */
import assert from "node:assert/strict";
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isKind } from "../../src/base/errors.ts";
import { keysProvider, parseKeys } from "../../src/store/s3-credentials.ts";
import { S3Endpoints } from "../../src/store/s3-endpoints.ts";
import { HurriedClock } from "../suites/hurried-clock.ts";

test("credentials are read from the default profile, in either case of the names", () => {
  const expected = { accessKeyId: "ID", secretAccessKey: "a/b+c=" };
  const files = [
    "[default]\naws_access_key_id = ID\naws_secret_access_key=a/b+c=\n",
    "# comment\n[other]\naws_access_key_id=x\n[default]\r\naws_access_key_id=ID\r\naws_secret_access_key = a/b+c= \r\n",
    "AWS_ACCESS_KEY_ID=ID\nAWS_SECRET_ACCESS_KEY=a/b+c=",
  ];
  for (const text of files) assert.deepEqual(parseKeys(text, "/file"), expected);
  const withToken = parseKeys(`${files[0]}aws_session_token=T`, "/file");
  assert.deepEqual(withToken, { ...expected, sessionToken: "T" });
});

test("a credentials file with something missing says what, and shows nothing of it", () => {
  for (const text of ["", "hunter2", "[default]\naws_secret_access_key=hunter2", "[p]\naws_access_key_id=hunter2"]) {
    assert.throws(
      () => parseKeys(text, "/run/secret/file"),
      (error) =>
        isKind(error, "invalid") && /path=\/run\/secret\/file/.test(error.message) && !/hunter2/.test(error.message),
    );
  }
});

test("a credentials file is read again when it changed, and the former keys serve while it is missing", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "s3block-keys-"));
  t.after(() => rm(directory, { recursive: true }));
  const path = join(directory, "credentials");
  const clock = new HurriedClock();
  const provide = keysProvider({ kind: "file", path }, clock);
  assert.ok(provide !== undefined);
  await assert.rejects(provide, (error) => isKind(error, "invalid"));
  const write = async (id: string): Promise<void> => {
    await writeFile(`${path}.new`, `aws_access_key_id=${id}\naws_secret_access_key=s\n`);
    await rename(`${path}.new`, path);
  };
  await write("first");
  assert.equal((await provide()).accessKeyId, "first");
  await write("second-one");
  assert.equal((await provide()).accessKeyId, "first");
  clock.advance(1000);
  assert.equal((await provide()).accessKeyId, "second-one");
  await rm(path);
  clock.advance(1000);
  assert.equal((await provide()).accessKeyId, "second-one");
  await writeFile(path, "half a fi");
  clock.advance(1000);
  assert.equal((await provide()).accessKeyId, "second-one");
  await write("third");
  clock.advance(1000);
  assert.equal((await provide()).accessKeyId, "third");
});

test("endpoints take turns", () => {
  const endpoints = new S3Endpoints(["a", "b", "c"]);
  assert.deepEqual(
    [0, 1, 2, 3, 4, 5].map((nowMs) => endpoints.pick(nowMs)),
    ["a", "b", "c", "a", "b", "c"],
  );
});

test("an endpoint that fails rests twice as long every time, up to 30 s, until it answers", () => {
  const endpoints = new S3Endpoints(["a", "b"]);
  let nowMs = 0;
  const restOfB = (): number => {
    endpoints.failed("b", nowMs);
    const failedMs = nowMs;
    do nowMs += 100;
    while (endpoints.pick(nowMs) !== "b" && endpoints.pick(nowMs) !== "b");
    return nowMs - failedMs;
  };
  assert.deepEqual(Array.from({ length: 8 }, restOfB), [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
  endpoints.succeeded("b");
  assert.equal(restOfB(), 500);
});

test("failures of requests that were under way together count once", () => {
  const endpoints = new S3Endpoints(["a", "b"]);
  for (let index = 0; index < 10; index += 1) endpoints.failed("b", 10 + index);
  assert.deepEqual([endpoints.pick(509), endpoints.pick(509)], ["a", "a"]);
  assert.equal(endpoints.pick(510), "b");
});

test("when all endpoints rest, the one whose rest ends first is tried", () => {
  const endpoints = new S3Endpoints(["a", "b", "c"]);
  endpoints.failed("a", 20);
  endpoints.failed("b", 10);
  endpoints.failed("c", 30);
  assert.equal(endpoints.pick(40), "b");
});
