// Exits 0 when node_modules holds what package-lock.json names, else 1. Runs with any Node from version 18 on and
// without dependencies, because it decides whether they have to be installed.
"use strict";
const { readFileSync } = require("node:fs");
const { join } = require("node:path");

const root = join(__dirname, "../..");

function packages(path) {
  return JSON.parse(readFileSync(join(root, path), "utf8")).packages;
}

function isInstalled() {
  let installed;
  try {
    installed = packages("node_modules/.package-lock.json");
  } catch {
    return false;
  }
  return Object.entries(packages("package-lock.json")).every(([path, entry]) => {
    if (path === "" || entry.link === true) return true;
    const there = installed[path];
    return there === undefined ? entry.optional === true : there.version === entry.version;
  });
}

process.exitCode = isInstalled() ? 0 : 1;
