/** Frames: a header of 36 bytes, then the body; and how a stream is split into them. */

import { FrameError } from "./errors.js";
import { KINDS, NAMES, decodeBody, encodeBody } from "./message.js";

const MAGIC = Buffer.from("hoff");
const HEADER_LEN = 36;
const CRC_AT = 32;
export const FRAME_MAX = 65_536;
/** The version in frames that precede the agreement. */
export const UNAGREED = 0;

/** The oldest and the newest version that this library supports. */
export const MINIMUM = 1;
export const CURRENT = 4;

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc;
});

/**
 * CRC-32 of IEEE 802.3. Node has it in zlib only since version 20.15.
 * @param {...Buffer} parts
 * @returns {number}
 */
export function crc32(...parts) {
  let crc = 0xffffffff;
  for (const part of parts) for (const byte of part) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/**
 * Encodes one frame.
 * @param {number} version The agreed one.
 * @param {Buffer} handoff The 16 bytes of the id.
 * @param {import("./message.js").Message} message
 * @param {number} fds Number of descriptors that travel with it: none on a stream.
 * @returns {Buffer}
 */
export function encode(version, handoff, message, fds = 0) {
  const { kind, unagreed, since } = KINDS[message.type];
  if (version < since) throw new FrameError("kind", `there is no ${message.type} in version ${version}`);
  const body = encodeBody(message);
  if (HEADER_LEN + body.length > FRAME_MAX) {
    throw new FrameError("too long", `a ${message.type} with a body of ${body.length} bytes`);
  }
  const header = Buffer.alloc(HEADER_LEN);
  MAGIC.copy(header);
  header.writeUInt16LE(unagreed ? UNAGREED : version, 4);
  header.writeUInt8(kind, 6);
  header.writeUInt16LE(fds, 8);
  header.writeUInt32LE(body.length, 12);
  handoff.copy(header, 16);
  header.writeUInt32LE(crc32(header.subarray(0, CRC_AT), body), CRC_AT);
  return Buffer.concat([header, body]);
}

/**
 * Decodes one frame. The checks are in the order of the protocol.
 * @param {Buffer} packet
 * @param {number} agreed The agreed version.
 * @param {{ fromService?: boolean, fds?: number }} options
 * @returns {{ handoff: Buffer, message: import("./message.js").Message }}
 */
export function decode(packet, agreed, { fromService = false, fds = 0 } = {}) {
  if (packet.length > FRAME_MAX) throw new FrameError("too long", `the frame has ${packet.length} bytes`);
  if (packet.length < HEADER_LEN) {
    throw new FrameError("short", `received ${packet.length} bytes, fewer than the ${HEADER_LEN} of a header`);
  }
  const body = packet.subarray(HEADER_LEN);
  if (!packet.subarray(0, 4).equals(MAGIC)) throw new FrameError("magic", "this is not a handoff frame");
  if (crc32(packet.subarray(0, CRC_AT), body) !== packet.readUInt32LE(CRC_AT)) {
    throw new FrameError("CRC", "the frame is damaged");
  }
  if (packet[7] !== 0 || packet.readUInt16LE(10) !== 0) {
    throw new FrameError("flags", "a flag or a reserved byte is set");
  }
  const length = packet.readUInt32LE(12);
  if (length !== body.length) {
    throw new FrameError("length", `the header announces ${length} bytes; received ${body.length}`);
  }
  const type = NAMES.get(packet[6]);
  if (type === undefined || KINDS[type].fromService !== fromService || agreed < KINDS[type].since) {
    throw new FrameError("kind", `no message of this direction and version has kind ${packet[6]}`);
  }
  const message = decodeBody(type, body);
  const wanted = KINDS[type].unagreed ? UNAGREED : agreed;
  const version = packet.readUInt16LE(4);
  if (version !== wanted) throw new FrameError("version", `the frame has version ${version}; agreed was ${wanted}`);
  const counted = packet.readUInt16LE(8);
  if (counted !== fds) throw new FrameError("fd count", `the header says ${counted} descriptors; received ${fds}`);
  if (fds === 0 && isBeside(message)) throw new FrameError("fd count", "the content of the state is missing");
  return { handoff: Buffer.from(packet.subarray(16, CRC_AT)), message };
}

/** Whether its content is in a file, which cannot travel over a stream. */
function isBeside({ type, length, inline }) {
  return type === "TakeOver" && length > 0 && inline.length === 0;
}

/**
 * The newest common version with a peer of this range, or 0 if there is none.
 * @param {number} minimum
 * @param {number} current
 */
export function commonVersion(minimum, current) {
  const version = Math.min(current, CURRENT);
  return Math.max(minimum, MINIMUM) <= version ? version : 0;
}

/** Splits a stream into frames. */
export class Cutter {
  #bytes = Buffer.alloc(0);

  /** @param {Buffer} bytes The received bytes. */
  push(bytes) {
    this.#bytes = Buffer.concat([this.#bytes, bytes]);
  }

  /**
   * The next frame, or `null` until more has arrived. After an error the rest of the stream is unreadable.
   * @returns {Buffer | null}
   */
  next() {
    const bytes = this.#bytes;
    if (bytes.length < HEADER_LEN) return null;
    if (!bytes.subarray(0, 4).equals(MAGIC)) throw new FrameError("magic", "this is not a handoff frame");
    const whole = HEADER_LEN + bytes.readUInt32LE(12);
    if (whole > FRAME_MAX) throw new FrameError("too long", `a frame of ${whole} bytes is announced`);
    if (bytes.length < whole) return null;
    this.#bytes = bytes.subarray(whole);
    return bytes.subarray(0, whole);
  }

  /** Call it at the end of the stream. */
  end() {
    if (this.#bytes.length > 0) throw new FrameError("short", "the stream ended within a frame");
  }
}
