/** The messages, and the encoding of their bodies. */

import { FrameError } from "./errors.js";

/** Maximum size of the content of a `State` in the message itself, and in a file. */
export const INLINE_MAX = 32 * 1024;
const CONTENT_MAX = 64 * 1024 * 1024;

/**
 * @typedef {{ type: string, [field: string]: any }} Message A message: its name as `type`, and its fields.
 * @typedef {{ kind: number, fromService: boolean, unagreed: boolean, since: number, fields: [string, string][] }} Kind
 */

export const MODES = ["exclusive", "overlap"];
export const STAGES = ["serving", "working", "waiting", "leaving"];
const NAME = /^[a-z0-9_][a-z0-9_-]{0,63}$/;

/** Two messages have the name `State`, one for each direction. */
const STATE = { format: "u32", length: "u64", crc32: "u32", inline: "bytes" };

/** @type {Record<string, Kind>} */
export const KINDS = {
  Hello: kind(0x01, { minimum: "u16", current: "u16", pid: "u32" }, true),
  Prepared: kind(0x02),
  Drained: kind(0x03),
  Sealed: kind(0x04),
  SealFailed: kind(0x05, { reason: "string" }),
  Ready: kind(0x06, { healthy: "bool", reason: "string" }),
  Resumed: kind(0x07),
  ResumeFailed: kind(0x08, { reason: "string" }),
  Progress: kind(0x09, { note: "string" }),
  Adopted: kind(
    0x0a,
    { version: "u16", pid: "u32", service: "name", generation: "u64", stage: "stage", listeners: "names" },
    true,
  ),
  HandOver: kind(0x0b, STATE, false, 2),
  Release: kind(0x0c, { version: "string" }, false, 4),
  Welcome: kind(
    0x81,
    { version: "u16", service: "name", generation: "u64", mode: "mode", listeners: "names", leaseMs: "u64" },
    true,
  ),
  Prepare: kind(0x82, { graceMs: "u64", leaseMs: "u64" }),
  Seal: kind(0x83, { leaseMs: "u64", cut: "bool" }),
  Begin: kind(0x84),
  Commit: kind(0x85),
  Abort: kind(0x86),
  Resume: kind(0x87),
  Adopt: kind(0x88, { minimum: "u16", current: "u16", leaseMs: "u64" }, true),
  TakeOver: kind(0x89, STATE, false, 2),
  Grant: kind(0x8a, { endMs: "u64" }, false, 3),
};

/** @type {Map<number, string>} */
export const NAMES = new Map(Object.entries(KINDS).map(([name, { kind }]) => [kind, name]));

/**
 * @param {number} kind
 * @param {Record<string, string>} fields
 * @param {boolean} unagreed Whether it precedes the version agreement, so that its frame carries version 0.
 * @param {number} since The first version with this message.
 * @returns {Kind}
 */
function kind(kind, fields = {}, unagreed = false, since = 0) {
  return { kind, fromService: kind < 0x80, unagreed, since, fields: Object.entries(fields) };
}

/**
 * @param {Message} message
 * @returns {Buffer}
 */
export function encodeBody(message) {
  try {
    return Buffer.concat(KINDS[message.type].fields.map(([field, type]) => encode(type, message[field])));
  } catch (error) {
    throw new FrameError("body", `cannot encode a ${message.type}: ${error.message}`);
  }
}

/**
 * Decodes a message from its whole body.
 * @param {string} type
 * @param {Buffer} body
 * @returns {Message}
 */
export function decodeBody(type, body) {
  const reader = new Reader(body);
  /** @type {Message} */
  const message = { type };
  try {
    for (const [field, kind] of KINDS[type].fields) message[field] = reader.read(kind);
    if (type === "HandOver" || type === "TakeOver") checkState(message);
  } catch (error) {
    throw new FrameError("body", `a ${type} is malformed: ${error.message}`);
  }
  if (reader.left > 0) throw new FrameError("trailing", `${reader.left} bytes follow a ${type}`);
  return message;
}

/**
 * @param {string} type
 * @param {any} value
 * @returns {Buffer}
 */
function encode(type, value) {
  switch (type) {
    case "u16":
      return integer(2, value);
    case "u32":
      return integer(4, value);
    case "u64":
      return u64(value);
    case "bool":
      return Buffer.from([value ? 1 : 0]);
    case "mode":
      return integer(4, place(MODES, value));
    case "stage":
      return integer(4, place(STAGES, value));
    case "bytes":
      return Buffer.concat([u64(value.length), value]);
    case "names":
      return Buffer.concat([u64(value.length), ...value.map((name) => encode("name", name))]);
    default: {
      const text = Buffer.from(type === "name" ? checkName(value) : value, "utf8");
      return Buffer.concat([u64(text.length), text]);
    }
  }
}

function integer(size, value) {
  const bytes = Buffer.alloc(size);
  bytes.writeUIntLE(value, 0, size);
  return bytes;
}

function u64(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function place(values, value) {
  const at = values.indexOf(value);
  if (at < 0) throw new RangeError(`${value} is none of ${values}`);
  return at;
}

function checkName(text) {
  if (!NAME.test(text)) throw new RangeError(`${JSON.stringify(text)} is not a name`);
  return text;
}

function checkState({ length, inline }) {
  if (length > CONTENT_MAX || inline.length > INLINE_MAX) throw new RangeError("the state is too long");
  if (inline.length > 0 && inline.length !== length) {
    throw new RangeError(`a state of ${length} bytes is announced; received ${inline.length}`);
  }
}

/** Reads one field after the other from a body. */
class Reader {
  #body;
  #at = 0;

  constructor(body) {
    this.#body = body;
  }

  get left() {
    return this.#body.length - this.#at;
  }

  read(type) {
    switch (type) {
      case "u16":
        return this.#take(2).readUInt16LE();
      case "u32":
        return this.#take(4).readUInt32LE();
      case "u64":
        return this.#u64();
      case "bool":
        return this.#choice([false, true], this.#take(1).readUInt8());
      case "mode":
        return this.#choice(MODES, this.#take(4).readUInt32LE());
      case "stage":
        return this.#choice(STAGES, this.#take(4).readUInt32LE());
      case "bytes":
        return Buffer.from(this.#take(this.#u64()));
      case "names":
        return this.#names();
      default: {
        // Rejects invalid UTF-8, and keeps a byte order mark.
        const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.#take(this.#u64()));
        return type === "name" ? checkName(text) : text;
      }
    }
  }

  #names() {
    const count = this.#u64();
    // Each takes at least nine bytes; a made-up count must not cost memory.
    if (count > this.left / 9) throw new RangeError(`${count} names do not fit`);
    return Array.from({ length: count }, () => this.read("name"));
  }

  #choice(values, at) {
    if (at >= values.length) throw new RangeError(`${at} is none of its values`);
    return values[at];
  }

  /** All numbers here are far below 2^53; a length above it does not fit anyway. */
  #u64() {
    return Number(this.#take(8).readBigUInt64LE());
  }

  #take(count) {
    if (count > this.left) throw new RangeError(`${count} bytes are announced; ${this.left} are left`);
    this.#at += count;
    return this.#body.subarray(this.#at - count, this.#at);
  }
}
