// The prompt box: one streamed chat completion.

import { counted } from "./figures.js";
import { events } from "./stream.js";

export class Ask {
  constructor(stream, onRefused) {
    Object.assign(this, { stream, onRefused, model: "", running: null });
    this.form = document.getElementById("ask-form");
    this.prompt = document.getElementById("prompt");
    this.button = document.getElementById("ask");
    this.answer = document.getElementById("answer");
    this.note = document.getElementById("answer-note");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.run();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.form.requestSubmit();
      }
    });
  }

  async run() {
    this.running = new AbortController();
    this.button.textContent = "Stop";
    this.answer.textContent = this.note.textContent = "";
    this.answer.classList.remove("failed");
    try {
      await this.receive(await this.send());
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error.message);
    } finally {
      this.running = null;
      this.button.textContent = "Ask";
    }
  }

  async send() {
    const reply = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...this.stream.headers() },
      signal: this.running.signal,
      body: JSON.stringify({
        model: this.model,
        messages: [{ role: "user", content: this.prompt.value }],
        temperature: 0,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (reply.ok) return reply;
    if (reply.status === 401) this.onRefused();
    throw new Error((await reply.json()).error.message);
  }

  async receive(reply) {
    const start = performance.now();
    for await (const data of events(reply)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const text = chunk.choices[0]?.delta?.content;
      if (text) this.answer.append(text);
      this.answer.scrollTop = this.answer.scrollHeight;
      if (chunk.usage) {
        const seconds = ((performance.now() - start) / 1000).toFixed(1);
        this.note.textContent = `${counted(chunk.usage.completion_tokens, "token")} in ${seconds} s`;
      }
    }
    throw new Error("the connection was closed in the middle of the answer");
  }

  fail(message) {
    this.answer.classList.add("failed");
    this.answer.append(`\n${message}`);
  }
}
