/** An invalid frame. `code` is one from the protocol's table of errors. */
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
