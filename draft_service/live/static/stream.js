// The stream of frames. fetch() instead of EventSource, which cannot send a key.

const RETRY_MS = 2000;

export class Stream {
  // `onState`: "open", "closed" (it tries again by itself), "key" (call `connect` again with one).
  constructor({ onAbout, onFrame, onState }) {
    Object.assign(this, { onAbout, onFrame, onState });
    this.key = "";
    this.connected = false;
  }

  headers() {
    return this.key ? { Authorization: `Bearer ${this.key}` } : {};
  }

  async connect() {
    if (this.connected) return;
    this.connected = true;
    for (;;) {
      try {
        const reply = await fetch("/live/events", { headers: this.headers(), cache: "no-store" });
        if (reply.status === 401) {
          this.key = "";
          this.connected = false;
          this.onState("key");
          return;
        }
        if (reply.ok) await this.read(reply);
        else this.onState("closed", (await reply.json()).error?.message);
      } catch (error) {
        if (!(error instanceof TypeError)) throw error; // fetch's name for a connection that failed
      }
      this.onState("closed");
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  async read(reply) {
    this.onState("open");
    for await (const data of events(reply)) {
      const message = JSON.parse(data);
      if (message.about) this.onAbout(message.about);
      else this.onFrame(message);
    }
  }
}

// The data of each server-sent event of a response.
export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
