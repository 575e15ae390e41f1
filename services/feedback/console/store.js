// The jobs that the page knows of, kept by the protocol's one rule.

/** Which jobs each tab shows. */
export const VIEWS = {
  all: () => true,
  running: (row) => row.state === "running" || row.state === "cancelling",
  waiting: (row) => row.state === "queued" || row.state === "waiting",
  failed: (row) => row.state === "failed",
  done: (row) => row.state === "succeeded" || row.state === "cancelled",
};

/** Rows by id. A row takes the place of one with a smaller `seq`; what is in `left` goes. */
export class Store {
  rows = new Map();
  /** Whether there has been a whole snapshot: only then nothing means that there is nothing. */
  isWhole = false;

  clear() {
    this.rows.clear();
    this.isWhole = false;
  }

  jobs(frame) {
    for (const row of frame.jobs) {
      const held = this.rows.get(row.id);
      if (!held || held.seq < row.seq) this.rows.set(row.id, row);
    }
    for (const id of frame.left ?? []) this.rows.delete(id);
    if (!frame.more) this.isWhole = true;
  }

  /** Progress of a job that ended, or of an older attempt, is passed over. */
  progress(frame) {
    for (const item of frame.items) {
      const row = this.rows.get(item.id);
      if (!row || row.finished_at || item.attempt < row.attempt) continue;
      const { id, attempt, ...progress } = item;
      row.progress = progress;
    }
  }

  counts() {
    const counts = Object.fromEntries(Object.keys(VIEWS).map((view) => [view, 0]));
    for (const row of this.rows.values()) {
      for (const view in VIEWS) if (VIEWS[view](row)) counts[view] += 1;
    }
    return counts;
  }

  list(view, words) {
    const fits = (row) => {
      if (!VIEWS[view](row)) return false;
      if (words.length === 0) return true;
      const text = [row.id, row.task, row.queue, row.state, row.worker, row.user, row.error?.code]
        .concat(row.objects)
        .join(" ")
        .toLowerCase();
      return words.every((word) => text.includes(word));
    };
    return [...this.rows.values()].filter(fits).sort((one, other) => other.seq - one.seq);
  }
}
