/** What came is not a message. `code` is one of those in the table of errors of the protocol. */
export class FrameError extends Error {
  /**
   * @param {string} code
   * @param {string} text
   */
  constructor(code, text) {
    super(`${code}: ${text}`);
    this.name = "FrameError";
    this.code = code;
  }
}

/** This process cannot be a service. */
export class HandoffError extends Error {
  name = "HandoffError";
}
