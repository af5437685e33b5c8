/** Frames, byte for byte, and every error by its name. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { Cutter, FRAME_MAX, commonVersion, crc32, decode, encode } from "../lib/frame.js";
import { KINDS } from "../lib/message.js";
import { pack, unpack } from "../lib/state.js";

const GOLDEN = new URL("../../../protocol/tests/golden/", import.meta.url);
const ID = Buffer.from("00112233445566778899aabbccddeeff", "hex");
const LISTENERS = ["http", "admin"];
const MESSAGES = {
  "01_Hello": { minimum: 1, current: 1, pid: 4711 },
  "02_Prepared": {},
  "03_Drained": {},
  "04_Sealed": {},
  "05_SealFailed": { reason: "disk full" },
  "06_Ready": { healthy: true, reason: "" },
  "07_Resumed": {},
  "08_ResumeFailed": { reason: "no such bucket" },
  "09_Progress": { note: "3 uploads" },
  "0a_Adopted": { version: 1, pid: 4711, service: "s3", generation: 7, stage: "waiting", listeners: LISTENERS },
  "81_Welcome": { version: 1, service: "s3", generation: 7, mode: "exclusive", listeners: LISTENERS, leaseMs: 5000 },
  "82_Prepare": { graceMs: 30_000, leaseMs: 35_000 },
  "83_Seal": { leaseMs: 5000, cut: false },
  "84_Begin": {},
  "85_Commit": {},
  "86_Abort": {},
  "87_Resume": {},
  "88_Adopt": { minimum: 1, current: 1, leaseMs: 5000 },
};
/** Additions in version 2, and their file names. */
const SINCE_2 = {
  "0b_State": pack(3, "two sessions"),
  "89_State": {
    type: "TakeOver",
    format: 3,
    length: 40_000,
    crc32: crc32(Buffer.alloc(40_000, 0xa5)),
    inline: Buffer.alloc(0),
  },
};
/** Additions in version 3. */
const SINCE_3 = { "8a_Grant": { endMs: 45_000 } };
/** Additions in version 4. */
const SINCE_4 = { "0c_Release": { version: "1.2.3" } };
const VERSIONS = [
  [1, MESSAGES],
  [2, { ...MESSAGES, ...SINCE_2 }],
  [3, { ...MESSAGES, ...SINCE_2, ...SINCE_3 }],
  [4, { ...MESSAGES, ...SINCE_2, ...SINCE_3, ...SINCE_4 }],
];

const golden = (name, version = 1) =>
  Buffer.from(readFileSync(new URL(`v${version}/${name}.hex`, GOLDEN), "utf8").replace(/\s/g, ""), "hex");

/** A frame with a correct checksum, whatever else is wrong. */
const sealed = (head, body) => {
  const crc = Buffer.alloc(4);
  crc.writeUInt32LE(crc32(head, body));
  return Buffer.concat([head, crc, body]);
};

test("frames are written and read byte for byte", () => {
  for (const [version, messages] of VERSIONS) {
    const files = readdirSync(new URL(`v${version}/`, GOLDEN)).filter((name) => /^[0-9]/.test(name));
    assert.deepEqual(files.map((name) => name.replace(".hex", "")).sort(), Object.keys(messages).sort());
    for (const [name, fields] of Object.entries(messages)) {
      const message = { type: name.slice(3), ...fields };
      const { fromService, unagreed } = KINDS[message.type];
      const fds = fields.listeners?.length ?? Number(name === "89_State");
      const packet = golden(name, version);
      assert.deepEqual(encode(version, ID, message, fds), packet, name);
      const found = decode(packet, unagreed ? 0 : version, { fromService, fds });
      assert.deepEqual(found, { handoff: ID, message }, name);
    }
  }
});

test("on a stream no descriptors are announced", () => {
  const frame = encode(1, ID, { type: "Welcome", ...MESSAGES["81_Welcome"] });
  assert.equal(frame.readUInt16LE(8), 0);
  assert.deepEqual(decode(frame, 0).message.listeners, LISTENERS);
  assert.throws(() => decode(golden("81_Welcome"), 0), { code: "fd count" });
});

test("each error has its name", () => {
  const seal = golden("83_Seal");
  const [head, body] = [seal.subarray(0, 32), seal.subarray(36)];
  const changed = (at, byte) => {
    const copy = Buffer.from(head);
    copy[at] = byte;
    return sealed(copy, body);
  };
  const withBody = (body) => {
    const copy = Buffer.from(head);
    copy.writeUInt32LE(body.length, 12);
    return sealed(copy, body);
  };
  const cases = [
    ["too long", Buffer.alloc(FRAME_MAX + 1)],
    ["short", seal.subarray(0, 35)],
    ["magic", Buffer.concat([Buffer.from("GET "), seal.subarray(4)])],
    ["CRC", Buffer.concat([seal.subarray(0, -1), Buffer.from([1])])],
    ["flags", changed(7, 1)],
    ["flags", changed(10, 1)],
    ["length", changed(12, 8)],
    ["kind", changed(6, 0x03)],
    ["body", withBody(Buffer.concat([body.subarray(0, -1), Buffer.from([2])]))],
    ["body", withBody(body.subarray(0, 3))],
    ["trailing", withBody(Buffer.concat([body, Buffer.from([0])]))],
    ["version", changed(4, 2)],
    ["fd count", changed(8, 1)],
  ];
  for (const [code, packet] of cases) assert.throws(() => decode(packet, 1), { code });
});

test("bodies hold no nonsense", () => {
  const welcome = golden("81_Welcome");
  for (const [at, byte] of [[2, 255], [10, 65], [20, 2], [24, 200], [31, 255]]) {
    const body = Buffer.from(welcome.subarray(36));
    body[at] = byte;
    assert.throws(() => decode(sealed(welcome.subarray(0, 32), body), 0, { fds: 2 }), { code: "body" }, `${at}`);
  }
  for (const service of ["", "-a", "A", "x".repeat(65), "a b", "a\n"]) {
    assert.throws(() => encode(1, ID, { type: "Welcome", ...MESSAGES["81_Welcome"], service }), { code: "body" });
  }
  const note = "x".repeat(65_500 - 8);
  assert.equal(encode(1, ID, { type: "Progress", note }).length, FRAME_MAX);
  assert.throws(() => encode(1, ID, { type: "Progress", note: `${note}x` }), { code: "too long" });
  assert.equal(crc32(Buffer.from("123456789")), 0xcbf43926);
});

test("a state is known since version 2, does not contradict itself, and has no file over a stream", () => {
  assert.throws(() => decode(golden("89_State", 2), 1, { fds: 1 }), { code: "kind" });
  assert.throws(() => encode(1, ID, SINCE_2["0b_State"]), { code: "kind" });
  assert.throws(() => decode(encode(2, ID, SINCE_2["89_State"]), 2), { code: "fd count" });
  for (const [length, size] of [[64 * 1024 * 1024 + 1, 0], [1, 2], [32_769, 32_769]]) {
    const packet = encode(2, ID, { ...SINCE_2["89_State"], length, inline: Buffer.alloc(size) }, 1);
    assert.throws(() => decode(packet, 2, { fds: 1 }), { code: "body" }, `${length}`);
  }
});

test("what is handed over is taken over, if it is what was announced", () => {
  for (const content of [Buffer.alloc(0), Buffer.from([1, 2]), Buffer.alloc(32 * 1024, 7)]) {
    const { type, ...fields } = pack(4, content);
    const frame = encode(2, ID, { type: "TakeOver", ...fields });
    assert.deepEqual(unpack(decode(frame, 2).message), { format: 4, content });
  }
  assert.throws(() => unpack({ ...pack(4, "abc"), crc32: 1 }), /not the one that was announced/);
  assert.throws(() => pack(4, Buffer.alloc(32 * 1024 + 1)), /a state of 32769 bytes: over a stream/);
  assert.throws(() => pack(-1, ""), /not a format/);
});

test("a stream is cut into its frames, however they come", () => {
  const frames = ["82_Prepare", "84_Begin", "85_Commit"].map((name) => golden(name));
  const all = Buffer.concat(frames);
  for (const size of [1, 7, 36, 40, all.length]) {
    const cutter = new Cutter();
    const found = [];
    for (let at = 0; at < all.length; at += size) {
      cutter.push(all.subarray(at, at + size));
      for (let frame = cutter.next(); frame; frame = cutter.next()) found.push(Buffer.from(frame));
    }
    assert.deepEqual(found, frames, `pieces of ${size}`);
    cutter.end();
  }
});

test("a stream that cannot be cut is an error", () => {
  const cutter = (bytes) => {
    const cutter = new Cutter();
    cutter.push(bytes);
    return cutter;
  };
  const long = Buffer.from(golden("84_Begin"));
  long.writeUInt32LE(65_501, 12);
  assert.throws(() => cutter(long).next(), { code: "too long" });
  assert.throws(() => cutter(Buffer.alloc(36)).next(), { code: "magic" });
  assert.throws(() => cutter(long.subarray(0, 20)).end(), { code: "short" });
});

test("the newest version that both speak is chosen", () => {
  assert.deepEqual([[1, 1], [1, 9], [0, 0], [9, 9]].map((range) => commonVersion(...range)), [1, 4, 0, 0]);
});
