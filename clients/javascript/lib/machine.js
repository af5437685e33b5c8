/**
 * The machine of a process in overlap mode: its reaction to each message and event. No clock, no descriptors.
 *
 * An action is `["Send", message]`, `["TakeOver", message]`, `["AnswerAdopt", stage]`, `["ArmLease", ms]`,
 * `["Drain", { graceMs, refused }]`, `["Seal", cut]`, `["Exit", code]`, or one of `HangUp`, `DisarmLease`, `Open`,
 * `CancelDrain` and `Resume` alone.
 *
 * @typedef {[string, any?]} Action
 * @typedef {import("./message.js").Message} Message
 */

/** Drain time of a process that must leave, in milliseconds. */
const LEAVE_GRACE_MS = 30_000;

/** The states of an uncommitted process. */
const UNCOMMITTED = ["Starting", "Parked", "Opening", "Ready", "Dismissed"];

/**
 * A process from its start to its end.
 *
 * Before the commit it is `Starting`, `Parked`, `Opening` and `Ready`, or `Dismissed` if it had begun to serve. After
 * the commit it is `Serving`, `Draining`, `Sealing`, `Sealed`, `Failed`, `Reopening` or `Leaving`. The last state is
 * `Gone`.
 */
export class Process {
  state = "Starting";
  connected = true;
  asked = false;
  done = false;
  drained = false;
  /** What to do when the seal code, or the resume code, has returned. */
  resume = false;
  leave = false;
  leaseMs = 0;

  /** @param {Buffer} handoff */
  constructor(handoff) {
    this.handoff = handoff;
  }

  /** Whether the supervisor waits for it, so that it must send signs of life. */
  get works() {
    const atWork = ["Starting", "Opening", "Sealing", "Reopening"];
    return atWork.includes(this.state) || (this.state === "Draining" && !this.drained);
  }

  /** Its stage for a new supervisor. */
  get stage() {
    if (this.leave && ["Sealing", "Reopening"].includes(this.state)) return "leaving";
    return { Ready: "serving", Serving: "serving", Dismissed: "leaving", Leaving: "leaving" }[this.state] ?? "working";
  }

  /**
   * Processes a message.
   * @param {Buffer} handoff
   * @param {Message} message
   * @returns {Action[]}
   */
  message(handoff, message) {
    const { state } = this;
    if (state === "Gone") return [];
    // The only message that begins another handoff.
    if (message.type === "Prepare" && state === "Serving") {
      Object.assign(this, { handoff, state: "Draining", drained: false });
      return [["ArmLease", message.leaseMs], ["Drain", { graceMs: message.graceMs, refused: false }]];
    }
    if (!handoff.equals(this.handoff)) return this.#breach();
    // `Grant` is for a process that runs another program.
    if (state === "Dismissed" || message.type === "Grant") return [];
    return UNCOMMITTED.includes(state) ? this.#messageBeforeCommit(message) : this.#messageAfterCommit(message);
  }

  #messageBeforeCommit(message) {
    const { state } = this;
    if (message.type === "Abort") {
      if (state !== "Ready") return this.#exit(0);
      this.state = "Dismissed";
      return [["ArmLease", LEAVE_GRACE_MS], ["Drain", { graceMs: LEAVE_GRACE_MS, refused: true }], ["Seal", true]];
    }
    if (message.type === "Prepare" && state === "Starting" && !this.asked) {
      this.asked = true;
      return [["ArmLease", message.leaseMs], ...this.#park()];
    }
    if (message.type === "Begin" && state === "Parked") {
      this.state = "Opening";
      return [["DisarmLease"], ["Open"]];
    }
    if (message.type === "Commit" && state === "Ready") {
      this.state = "Serving";
      return [];
    }
    return this.#breach();
  }

  #messageAfterCommit(message) {
    const { state } = this;
    if (message.type === "Seal" && !["Sealing", "Sealed", "Leaving"].includes(state)) {
      return state === "Draining" ? this.#seal(message) : [];
    }
    if (message.type === "Resume") return this.#takeBack();
    if (message.type === "Commit" || message.type === "Abort") return this.#depart();
    // The predecessor drains while this process already serves.
    if (message.type === "TakeOver" && state === "Serving") return [["TakeOver", message]];
    return this.#breach();
  }

  /**
   * Hands state over; only while a successor waits for it.
   * @param {Message} message
   * @returns {Action[]}
   */
  handOver({ type, ...fields }) {
    const isWaitedFor = this.state === "Draining" || (this.state === "Sealing" && !this.resume && !this.leave);
    return isWaitedFor ? this.#say(type, fields) : [];
  }

  /**
   * A new supervisor has connected on its own channel; the old channel is closed.
   * @param {Buffer} handoff
   * @returns {Action[]}
   */
  adopt(handoff) {
    if (this.state === "Gone") return [];
    this.handoff = handoff;
    this.connected = true;
    return [["AnswerAdopt", this.stage]];
  }

  /**
   * Processes another event: `closed`, `lease`, `started`, `opened`, `not opened`, or `drain`, `seal` or `resume`
   * with `done` or `failed`.
   * @param {string} event
   * @param {string} reason
   * @returns {Action[]}
   */
  happen(event, reason = "") {
    if (event === "closed") return this.#closed();
    if (event === "lease") return this.#leaseEnds();
    const before = UNCOMMITTED.includes(this.state);
    return before ? this.#happenBeforeCommit(event, reason) : this.#happenAfterCommit(event, reason);
  }

  #happenBeforeCommit(event, reason) {
    const { state } = this;
    if (event === "started" && state === "Starting") {
      this.done = true;
      return this.#park();
    }
    if (event === "opened" && state === "Opening") {
      // Without a supervisor to send `Commit`, the serving process is the incumbent.
      this.state = this.connected ? "Ready" : "Serving";
      return this.#say("Ready", { healthy: true, reason: "" });
    }
    if (event === "not opened" && ["Starting", "Parked", "Opening"].includes(state)) {
      return [...this.#say("Ready", { healthy: false, reason }), ...this.#exit(1)];
    }
    if (event.startsWith("seal ") && state === "Dismissed") return this.#exit(0);
    return [];
  }

  #happenAfterCommit(event, reason) {
    const { state } = this;
    if (event.startsWith("drain ") && state === "Draining" && !this.drained) {
      if (event === "drain failed") {
        this.state = "Failed";
        return this.#say("SealFailed", { reason });
      }
      this.drained = true;
      return this.#say("Drained");
    }
    if (event.startsWith("seal ") && (state === "Sealing" || state === "Leaving")) {
      return this.#sealReturned(event === "seal done", reason);
    }
    if (event === "resume done" && state === "Reopening") {
      this.state = "Serving";
      return [...this.#say("Resumed"), ...(this.leave ? this.#depart() : [])];
    }
    if (event === "resume failed" && state === "Reopening") {
      return [...this.#say("ResumeFailed", { reason }), ...this.#exit(1)];
    }
    return [];
  }

  #closed() {
    if (this.state === "Gone") return [];
    this.connected = false;
    if (this.state === "Starting" || this.state === "Parked") return this.#exit(0);
    if (this.state === "Ready") this.state = "Serving";
    return this.#takeBack();
  }

  #leaseEnds() {
    if (this.state === "Starting" || this.state === "Parked") return this.#exit(0);
    if (this.state === "Dismissed" || this.state === "Leaving") return [["CancelDrain"]];
    return ["Draining", "Sealed", "Failed"].includes(this.state) ? this.#takeBack() : [];
  }

  #park() {
    if (!(this.asked && this.done)) return [];
    this.state = "Parked";
    return this.#say("Prepared");
  }

  #seal({ leaseMs, cut }) {
    const cancel = this.drained ? [] : [["CancelDrain"]];
    Object.assign(this, { state: "Sealing", resume: false, leave: false, leaseMs });
    return [...cancel, ["DisarmLease"], ["Seal", cut]];
  }

  #sealReturned(good, reason) {
    if (this.state === "Leaving" || this.leave) return this.#exit(0);
    if (this.resume) return this.#serve();
    this.state = good ? "Sealed" : "Failed";
    return [["ArmLease", this.leaseMs], ...(good ? this.#say("Sealed") : this.#say("SealFailed", { reason }))];
  }

  /** Serves again with everything that was taken from it. */
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
    if (this.state === "Sealed") return this.#exit(0);
    if (this.state === "Sealing" || this.state === "Reopening") this.leave = true;
    if (!["Serving", "Draining", "Failed"].includes(this.state)) return [];
    this.state = "Leaving";
    return [["ArmLease", LEAVE_GRACE_MS], ["Drain", { graceMs: LEAVE_GRACE_MS, refused: false }], ["Seal", true]];
  }

  #say(type, fields = {}) {
    return this.connected ? [["Send", { type, ...fields }]] : [];
  }

  #breach() {
    return [["HangUp"], ...this.#closed()];
  }

  #exit(code) {
    this.state = "Gone";
    return [["Exit", code]];
  }
}
