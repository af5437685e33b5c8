/** What a service hands over to the process that follows it. */

import { HandoffError } from "./errors.js";
import { crc32 } from "./frame.js";
import { INLINE_MAX } from "./message.js";

/**
 * @typedef {object} State
 * @property {number} format The number that the service itself gives to the form of the content. Raise it when the content
 *   gets another meaning, and refuse those that are not known.
 * @property {Buffer} content
 */

/**
 * The message for the process that follows.
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
    throw new HandoffError(`a state of ${inline.length} bytes cannot be handed over: ${why} ${INLINE_MAX}`);
  }
  return { type: "HandOver", format, length: inline.length, crc32: crc32(inline), inline };
}

/**
 * What came with a message.
 * @param {import("./message.js").Message} message
 * @returns {State}
 */
export function unpack({ format, length, crc32: sum, inline }) {
  if (inline.length !== length || crc32(inline) !== sum) {
    throw new HandoffError("what was handed over cannot be taken: its content is not the one that was announced");
  }
  return { format, content: Buffer.from(inline) };
}
