/** Texts that have broken other programs: shells, options, paths, lines, encodings, lengths. */
import fc from "fast-check";

const texts = [
  ..."|;&$`'\"\\*?~#!<>(){}[]".split(""),
  "..",
  "../../../../etc",
  "/etc/passwd",
  "/",
  "//",
  "/.",
  "-",
  "--",
  "-d",
  "-o",
  "--help",
  "-t=tmpfs",
  "; reboot",
  "$(touch /tmp/owned)",
  "`id`",
  "${IFS}",
  "a && rm -rf /",
  "| sh",
  "a\nb",
  "a\r\nb",
  "a\0b",
  "\0",
  "\u202ereversed",
  "\ufeffmark",
  "ﬀ",
  "𝒳".repeat(64),
  "%2e%2e%2f",
  "%s%n%x",
  " ",
  "\t",
  "noatime,nobarrier",
  "context=a,nobarrier",
  'context="a",remount',
  "ro,rw,loop",
  "bind",
  "remount",
  "loop=/dev/sda",
  "helper=/bin/sh",
  "x-mount.mkdir",
  "X-mount.subdir=../..",
  "/dev/sda",
  "/dev/../etc/shadow",
  "/dev/nbd7/../sda",
  "__proto__",
  "constructor",
  "x".repeat(4096),
];

/** All of them, and all of them as a part of a path below `root`. */
export function hostileTexts(root: string): string[] {
  return [...texts, ...texts.map((text) => `${root}/${text}`), ...texts.map((text) => `${root}/pods/${text}/mount`)];
}

/** One of them, alone, within something harmless, or any text at all. `root` is asked for when the value is made. */
export function hostileValue(root: () => string): fc.Arbitrary<string> {
  const known = fc.nat(3 * texts.length - 1).map((index) => hostileTexts(root())[index] ?? "");
  const within = fc.tuple(fc.constantFrom("vol-1", "noatime", "ext4", "a"), fc.constantFrom(...texts), fc.boolean());
  const random = fc.string({ unit: "binary", maxLength: 64 });
  return fc.oneof(
    { weight: 4, arbitrary: known },
    { weight: 1, arbitrary: within.map(([harmless, text, first]) => (first ? text + harmless : harmless + text)) },
    { weight: 1, arbitrary: random },
    { weight: 1, arbitrary: random.map((text) => `${root()}/${text}`) },
  );
}
