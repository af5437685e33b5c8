/**
 * The two machines of a service in overlap mode: what it does on each message and event. No clock, no descriptor.
 *
 * An action is `["Send", message]`, `["TakeOver", message]`, `["AnswerAdopt", stage]`, `["ArmLease", ms]`,
 * `["Drain", graceMs]`, `["Seal", cut]`, `["Leave", graceMs]`, `["Exit", code]`, or one of `HangUp`, `DisarmLease`, `Open`,
 * `CancelDrain`, `Resume` and `BecomeIncumbent` alone.
 *
 * @typedef {[string, any?]} Action
 * @typedef {import("./message.js").Message} Message
 */

/** For so long the drain code of a process that leaves may run. */
const LEAVE_GRACE_MS = 30_000;

class Machine {
  /**
   * @param {Buffer} handoff
   * @param {string} state
   * @param {boolean} connected
   */
  constructor(handoff, state, connected) {
    this.handoff = handoff;
    this.state = state;
    this.connected = connected;
  }

  /**
   * The service hands something over: only while a process that follows waits for it.
   * @param {Message} _message
   * @returns {Action[]}
   */
  handOver(_message) {
    return [];
  }

  /**
   * Another supervisor has come, on a channel of its own; the one before is closed.
   * @param {Buffer} handoff
   * @returns {Action[]}
   */
  adopt(handoff) {
    if (this.state === "Gone") return [];
    this.handoff = handoff;
    this.connected = true;
    return [["AnswerAdopt", this.stage]];
  }

  _say(type, fields = {}) {
    return this.connected ? [["Send", { type, ...fields }]] : [];
  }

  _breach() {
    return [["HangUp"], ...this.happen("closed")];
  }

  _exit(code) {
    this.state = "Gone";
    return [["Exit", code]];
  }
}

/** A process from its start until it is the incumbent. */
export class Successor extends Machine {
  asked = false;
  done = false;

  /** @param {Buffer} handoff */
  constructor(handoff) {
    super(handoff, "Starting", true);
  }

  /** Whether the supervisor waits for it, so that it must give signs of life. */
  get works() {
    return this.state === "Starting" || this.state === "Opening";
  }

  /** What another supervisor is told. */
  get stage() {
    return { Serving: "serving", Leaving: "leaving" }[this.state] ?? "working";
  }

  /**
   * A message came.
   * @param {Buffer} handoff
   * @param {Message} message
   * @returns {Action[]}
   */
  message(handoff, message) {
    const { state } = this;
    if (state === "Gone" || state === "Incumbent") return [];
    if (!handoff.equals(this.handoff)) return this._breach();
    if (state === "Leaving") return [];
    if (message.type === "Abort") {
      if (state !== "Serving") return this._exit(0);
      this.state = "Leaving";
      return [["Leave", LEAVE_GRACE_MS]];
    }
    if (message.type === "Prepare" && state === "Starting" && !this.asked) {
      this.asked = true;
      return [["ArmLease", message.leaseMs], ...this.#park()];
    }
    if (message.type === "Begin" && state === "Parked") {
      this.state = "Opening";
      return [["DisarmLease"], ["Open"]];
    }
    if (message.type === "Commit" && state === "Serving") return this.#becomeIncumbent();
    return this._breach();
  }

  /**
   * Something else happened: `closed`, `lease`, `started`, `opened`, `not opened`, `seal done` or `seal failed`.
   * @param {string} event
   * @param {string} reason
   * @returns {Action[]}
   */
  happen(event, reason = "") {
    const { state } = this;
    if (event === "closed" && state !== "Gone" && state !== "Incumbent") {
      this.connected = false;
      if (state === "Starting" || state === "Parked") return this._exit(0);
      return state === "Serving" ? this.#becomeIncumbent() : [];
    }
    if (event === "lease" && (state === "Starting" || state === "Parked")) return this._exit(0);
    if (event === "started" && state === "Starting") {
      this.done = true;
      return this.#park();
    }
    if (event === "opened" && state === "Opening") {
      if (!this.connected) return this.#becomeIncumbent();
      this.state = "Serving";
      return this._say("Ready", { healthy: true, reason: "" });
    }
    if (event === "not opened" && ["Starting", "Parked", "Opening"].includes(state)) {
      return [...this._say("Ready", { healthy: false, reason }), ...this._exit(1)];
    }
    if ((event === "seal done" || event === "seal failed") && state === "Leaving") return this._exit(0);
    return [];
  }

  #park() {
    if (!(this.asked && this.done)) return [];
    this.state = "Parked";
    return this._say("Prepared");
  }

  #becomeIncumbent() {
    this.state = "Incumbent";
    return [["BecomeIncumbent"]];
  }
}

/** A process that serves, until it leaves. */
export class Incumbent extends Machine {
  drained = false;
  /** What is to be done when the seal code, or the resume code, has returned. */
  resume = false;
  leave = false;
  leaseMs = 0;

  /**
   * @param {Buffer} handoff
   * @param {boolean} connected
   */
  constructor(handoff, connected) {
    super(handoff, "Serving", connected);
  }

  /** Whether the supervisor waits for it, so that it must give signs of life. */
  get works() {
    return ["Sealing", "Reopening"].includes(this.state) || (this.state === "Draining" && !this.drained);
  }

  /** What another supervisor is told. */
  get stage() {
    if (this.state === "Leaving" || (this.leave && ["Sealing", "Reopening"].includes(this.state))) return "leaving";
    return this.state === "Serving" ? "serving" : "working";
  }

  /**
   * A message came.
   * @param {Buffer} handoff
   * @param {Message} message
   * @returns {Action[]}
   */
  message(handoff, message) {
    const { state } = this;
    if (state === "Gone") return [];
    if (message.type === "Prepare" && state === "Serving") {
      Object.assign(this, { handoff, state: "Draining", drained: false });
      return [["ArmLease", message.leaseMs], ["Drain", message.graceMs]];
    }
    if (!handoff.equals(this.handoff)) return this._breach();
    if (message.type === "Seal" && !["Sealing", "Sealed", "Leaving"].includes(state)) {
      return state === "Draining" ? this.#seal(message) : [];
    }
    if (message.type === "Resume") return this.#takeBack();
    if (message.type === "Commit" || message.type === "Abort") return this.#depart();
    // The process that went before drains while this one serves already.
    if (message.type === "TakeOver" && state === "Serving") return [["TakeOver", message]];
    return this._breach();
  }

  handOver({ type, ...fields }) {
    const isWaitedFor = this.state === "Draining" || (this.state === "Sealing" && !this.resume && !this.leave);
    return isWaitedFor ? this._say(type, fields) : [];
  }

  /**
   * Something else happened: `closed`, `lease`, or `drain`, `seal` or `resume` with `done` or `failed`.
   * @param {string} event
   * @param {string} reason
   * @returns {Action[]}
   */
  happen(event, reason = "") {
    const { state } = this;
    if (event === "closed" && state !== "Gone") {
      this.connected = false;
      return this.#takeBack();
    }
    if (event === "lease") {
      if (state === "Leaving") return [["CancelDrain"]];
      return ["Draining", "Sealed", "Failed"].includes(state) ? this.#takeBack() : [];
    }
    if (event.startsWith("drain ") && state === "Draining" && !this.drained) {
      if (event === "drain failed") {
        this.state = "Failed";
        return this._say("SealFailed", { reason });
      }
      this.drained = true;
      return this._say("Drained");
    }
    if (event.startsWith("seal ") && (state === "Sealing" || state === "Leaving")) {
      return this.#sealReturned(event === "seal done", reason);
    }
    if (event === "resume done" && state === "Reopening") {
      this.state = "Serving";
      return [...this._say("Resumed"), ...(this.leave ? this.#depart() : [])];
    }
    if (event === "resume failed" && state === "Reopening") {
      return [...this._say("ResumeFailed", { reason }), ...this._exit(1)];
    }
    return [];
  }

  #seal({ leaseMs, cut }) {
    const cancel = this.drained ? [] : [["CancelDrain"]];
    Object.assign(this, { state: "Sealing", resume: false, leave: false, leaseMs });
    return [...cancel, ["DisarmLease"], ["Seal", cut]];
  }

  #sealReturned(good, reason) {
    if (this.state === "Leaving" || this.leave) return this._exit(0);
    if (this.resume) return this.#serve();
    this.state = good ? "Sealed" : "Failed";
    return [["ArmLease", this.leaseMs], ...(good ? this._say("Sealed") : this._say("SealFailed", { reason }))];
  }

  /** Serves again with whatever was taken from it. */
  #takeBack() {
    if (this.state === "Sealing") this.resume = true;
    return ["Draining", "Failed", "Sealed"].includes(this.state) ? this.#serve() : [];
  }

  #serve() {
    const cancel = this.state === "Draining" && !this.drained ? [["CancelDrain"]] : [];
    Object.assign(this, { state: "Reopening", leave: false });
    return [...cancel, ["DisarmLease"], ["Resume"]];
  }

  #depart() {
    if (this.state === "Sealed") return this._exit(0);
    if (this.state === "Sealing" || this.state === "Reopening") this.leave = true;
    if (!["Serving", "Draining", "Failed"].includes(this.state)) return [];
    this.state = "Leaving";
    return [["ArmLease", LEAVE_GRACE_MS], ["Drain", LEAVE_GRACE_MS], ["Seal", true]];
  }
}
