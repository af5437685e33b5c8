/** State that a service hands to its successor. */

import { HandoffError } from "./errors.js";
import { crc32 } from "./frame.js";
import { INLINE_MAX } from "./message.js";

/**
 * @typedef {object} State
 * @property {number} format The service's own format number of the content. Increase it when the meaning changes, and
 * refuse formats that you do not support.
 * @property {Buffer} content
 */

/**
 * The message for the successor.
 * @param {number} format
 * @param {Buffer | Uint8Array | string} bytes
 * @returns {import("./message.js").Message}
 */
export function pack(format, bytes) {
  const inline = Buffer.from(bytes);
  if (!Number.isInteger(format) || format < 0 || format >= 2 ** 32) {
    throw new HandoffError(`${format} is not a format: it is a whole number of 32 bits`);
  }
  if (inline.length > INLINE_MAX) {
    const why = "over a stream, which carries no file, it has at most";
    throw new HandoffError(`cannot hand over a state of ${inline.length} bytes: ${why} ${INLINE_MAX}`);
  }
  return { type: "HandOver", format, length: inline.length, crc32: crc32(inline), inline };
}

/**
 * The state from a message.
 * @param {import("./message.js").Message} message
 * @returns {State}
 */
export function unpack({ format, length, crc32: sum, inline }) {
  if (inline.length !== length || crc32(inline) !== sum) {
    throw new HandoffError("cannot read the handed-over state: its content is not the one that was announced");
  }
  return { format, content: Buffer.from(inline) };
}
