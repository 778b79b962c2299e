// Questions to the server, one at a time.

export async function ask(address, question) {
  const answer = await fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// Does one job after another; of those that come meanwhile, only the newest. A job that has not called its
// argument after a while is slow.
export class Worker {
  constructor(panel, onSlow, onError) {
    Object.assign(this, { panel, onSlow, onError, next: null, isBusy: false });
  }

  get hasNewer() {
    return this.next !== null;
  }

  async run(job) {
    this.next = job;
    if (this.isBusy) return;
    this.isBusy = true;
    this.panel.setAttribute("aria-busy", "true");
    while (this.next) {
      const current = this.next;
      this.next = null;
      const slow = setTimeout(this.onSlow, 400);
      try {
        await current(() => clearTimeout(slow));
      } catch (error) {
        this.onError(error instanceof TypeError ? "The server does not answer: has it been stopped?" : error.message);
      }
      clearTimeout(slow);
    }
    this.isBusy = false;
    this.panel.setAttribute("aria-busy", "false");
  }
}
