// The connection: one websocket (protocol jobs.v1) that mends itself.

const SUBSCRIPTION = 1;
const SILENCE_MS = 45_000;
const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 30_000;

/** A connection that mends itself, and goes on where it was. */
export class Link {
  constructor(token, store, on) {
    this.token = token;
    this.store = store;
    this.on = on;
    this.cursor = null;
    this.attempts = 0;
    this.ended = false;
    this.offset = 0;
  }

  open() {
    clearTimeout(this.timer);
    this.retryAfter = 0;
    this.on.state("trying", this.attempts ? "connecting again" : "connecting");
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/v1/ws`, "jobs.v1");
    this.socket = socket;
    socket.onopen = () => {
      const hello = { t: "hello", v: 1, token: this.token };
      if (this.cursor) hello.resume = this.cursor;
      this.send(hello);
      this.listen();
    };
    socket.onmessage = (message) => {
      if (socket !== this.socket) return;
      this.listen();
      let frame;
      try {
        frame = JSON.parse(message.data);
      } catch {
        return;
      }
      this.read(frame);
    };
    socket.onclose = (close) => {
      if (socket === this.socket) this.closed(close);
    };
  }

  /** Silence for too long is a lost connection, whatever the browser believes. */
  listen() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.drop(), SILENCE_MS);
  }

  drop() {
    const socket = this.socket;
    this.closed({ code: 1006, reason: "" });
    socket?.close();
  }

  send(frame) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(frame));
  }

  read(frame) {
    switch (frame.t) {
      case "welcome":
        this.attempts = 0;
        this.epoch = frame.epoch;
        this.offset = Date.parse(frame.now) - Date.now();
        if (!frame.resumed) {
          this.store.clear();
          this.cursor = null;
        }
        this.on.welcome(frame);
        this.send({ t: "sub", id: SUBSCRIPTION, snapshot: !frame.resumed });
        break;
      case "jobs":
        this.store.jobs(frame);
        // In the midst of a snapshot there is no place to go on from.
        if (!frame.more) this.cursor = { epoch: this.epoch, seq: frame.seq };
        this.on.change();
        break;
      case "progress":
        this.store.progress(frame);
        this.on.change();
        break;
      case "hb":
        this.cursor = { epoch: this.epoch, seq: frame.seq };
        this.offset = Date.parse(frame.now) - Date.now();
        break;
      case "reset":
        this.store.clear();
        this.cursor = null;
        break;
      case "expiring":
        this.on.expiring(frame.at);
        break;
      case "bye":
        this.retryAfter = frame.retry_after_ms;
        break;
      default:
        // A later version of the protocol may say more.
        break;
    }
  }

  closed(close) {
    clearTimeout(this.silence);
    this.socket = null;
    if (this.ended) return;
    if ([4401, 4403, 4406].includes(close.code)) {
      this.end();
      this.on.refused(close.reason || "the server closed the connection");
      return;
    }
    const doubled = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** this.attempts);
    // All clients of a server that was restarted must not come back at once.
    const wait = this.retryAfter
      ? this.retryAfter * (1 + 2 * Math.random())
      : Math.max(RETRY_MIN_MS, doubled * Math.random());
    this.attempts += 1;
    this.on.state("lost", `connection lost, trying again in ${Math.ceil(wait / 1000)} s`);
    this.timer = setTimeout(() => this.open(), wait);
  }

  /** Tries at once: the network is back, or somebody looks at the page again. */
  hurry() {
    if (!this.ended && !this.socket) this.open();
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }
}
