/**
 * The server as a process that listens on TCP with TLS: libnbd's and qemu's clients (both by GnuTLS, another library than
 * the server's) copy through it, and those without a certificate, or without TLS, get nothing.
 */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { SeededRandom } from "../../src/base/seeded-random.ts";
import { Playground, run } from "../cli/program.ts";
import type { ServerProcess } from "../cli/program.ts";
import type { Certificates } from "./certificates.ts";
import { makeCertificates } from "./certificates.ts";

const imageBytes = 16 * 1024 * 1024;
let ground: Playground;
let certificates: Certificates;
let server: ServerProcess;
let port = 0;

before(async () => {
  ground = await Playground.make();
  certificates = await makeCertificates(ground.directory);
  await writeFile(ground.path("image"), new SeededRandom(11).bytes(imageBytes));
  assert.equal((await ground.volume("create", "disk", String(imageBytes))).code, 0);
  server = await ground.serve([
    ...ground.serverFlags(),
    "--listen=tcp://127.0.0.1:0",
    `--tls-cert-file=${certificates.server.certFile}`,
    `--tls-key-file=${certificates.server.keyFile}`,
    `--tls-ca-file=${certificates.caFile}`,
  ]);
  port = Number(server.lines.find((line) => line["tls"] === true)?.["port"]);
});

after(() => ground.remove());

function uri(scheme: "nbd" | "nbds", name = "disk"): string {
  const certificatesOfClient = scheme === "nbds" ? `?tls-certificates=${certificates.clientDirectory}` : "";
  return `${scheme}://localhost:${port}/${name}${certificatesOfClient}`;
}

test("libnbd's tools see and copy a volume through tls, and what they wrote is there without it", async () => {
  const info = await run("nbdinfo", ["--json", uri("nbds")]);
  assert.equal(info.code, 0, info.stderr);
  const { TLS, exports } = JSON.parse(info.stdout) as { TLS: boolean; exports: { "export-size": number }[] };
  assert.deepEqual([TLS, exports[0]?.["export-size"]], [true, imageBytes]);
  const listed = await run("nbdinfo", ["--list", uri("nbds", "")]);
  assert.match(listed.stdout, /export="disk"/);
  const copied = await run("nbdcopy", ["--flush", "--connections=2", ground.path("image"), uri("nbds")]);
  assert.equal(copied.code, 0, copied.stderr);
  for (const [from, to] of [
    [ground.uri("disk"), "by-socket"],
    [uri("nbds"), "by-tls"],
  ]) {
    const back = await run("nbdcopy", [from, ground.path(to)]);
    assert.equal(back.code, 0, back.stderr);
    assert.ok((await ground.read(to)).equals(await ground.read("image")), to);
  }
});

test("qemu compares a volume through tls with what was written", async () => {
  const credentials = `tls-creds-x509,id=tls0,dir=${certificates.clientDirectory},endpoint=client`;
  const volume = `driver=nbd,host=localhost,port=${port},export=disk,tls-creds=tls0`;
  await run("nbdcopy", ["--flush", ground.path("image"), ground.uri("disk")]);
  const image = `driver=raw,file.driver=file,file.filename=${ground.path("image")}`;
  const compared = await run("qemu-img", ["compare", "--object", credentials, "--image-opts", volume, image]);
  assert.equal(compared.code, 0, compared.stdout + compared.stderr);
});

test("clients without tls, or without a certificate, are told nothing", async () => {
  for (const args of [
    ["--json", uri("nbd")],
    ["--list", uri("nbd", "")],
    ["--json", `nbds://localhost:${port}/disk`],
  ]) {
    const refused = await run("nbdinfo", args);
    assert.notEqual(refused.code, 0, args.join(" "));
    assert.doesNotMatch(refused.stdout, /disk|export-size/);
  }
  assert.deepEqual(
    server.lines.filter((line) => line["message"] === "nbd over tcp is neither encrypted nor authenticated"),
    [],
  );
});

test("what is served on tcp without tls needs a flag that says so, and the log warns", async () => {
  const other = ["--state-dir", "--run-dir", "--control-socket", "--listen"];
  const flags = [
    ...ground.serverFlags().filter((flag) => !other.some((name) => flag.startsWith(`${name}=`))),
    `--state-dir=${ground.path("state-2")}`,
    `--run-dir=${ground.path("run-2")}`,
    `--control-socket=${ground.path("run-2/control.sock")}`,
    "--listen=tcp://127.0.0.1:0",
  ];
  const plain = await ground.serve([...flags, "--insecure", "--metrics-address=0.0.0.0:0"]);
  const warning = await plain.logged("nbd over tcp is neither encrypted nor authenticated");
  assert.equal(warning["level"], "warn");
  const warned = plain.lines.filter(({ level }) => level === "warn").map(({ message }) => String(message));
  assert.ok(warned.some((message) => message.startsWith("metrics are neither encrypted nor authenticated")));
});
