// An item that is reserved for this reader: renewed while it is open, given back when it is left.

import { ask } from "./api.js";

export class Hold {
  /** `lost` is called once if the item is somebody else's meanwhile. */
  constructor({ lease_id, until }, lost) {
    Object.assign(this, { id: lease_id, lost, until: Date.parse(until), over: false });
    this.#plan();
  }

  #plan() {
    clearTimeout(this.timer);
    // A third of what is left, so that two renewals may fail
    this.timer = setTimeout(() => this.renew(), Math.max(5000, (this.until - Date.now()) / 3));
  }

  async renew() {
    if (this.over) return;
    try {
      const { until } = await ask("POST", `/v1/worklist/lease/${this.id}/renew`);
      this.until = Date.parse(until);
    } catch (problem) {
      if (problem.code === "lease_lost") {
        this.end();
        this.lost();
        return;
      }
    }
    if (!this.over) this.#plan();
  }

  /** Stop renewing: the item is done, or no longer held. */
  end() {
    this.over = true;
    clearTimeout(this.timer);
  }

  /** Give the item back, also while the page is being closed. */
  async giveBack() {
    if (this.over) return;
    this.end();
    try {
      await ask("POST", `/v1/worklist/lease/${this.id}/return`, { keepalive: true });
    } catch { /* it runs out by itself */ }
  }

  async skip(reason) {
    await ask("POST", `/v1/worklist/lease/${this.id}/skip`, { json: { reason } });
    this.end();
  }
}
