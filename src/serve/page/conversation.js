// The conversation: turns of one message and an answer from each model that was asked, kept here
// and shown in a list.

import {streamChat} from "./api.js";

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// The text with its ``` blocks set as code.
function showText(container, text) {
  const pieces = text.split(/^```[^\n]*\n?/m);
  container.replaceChildren(...pieces.map(
      (piece, i) => (i % 2 ? element("pre", piece) : document.createTextNode(piece))));
}

class Answer {
  constructor(model) {
    this.model = model;
    this.text = "";
    this.node = element("article", undefined, "answer");
    this.node.setAttribute("aria-busy", "true");
    this.textNode = element("div", undefined, "text");
    this.stats = element("div", "waiting", "stats");
    this.node.append(element("h3", model), this.textNode, this.stats);
  }

  // Streams until the end, a stop or a failure. True where it came to its own end.
  async run(body, signal, onText) {
    const started = performance.now();
    let first = 0, last = 0, chunks = 0, usage = null, ending = "";
    const showStats = () => {
      const tokens = usage ? usage.completion_tokens : chunks;
      const seconds = (last - first) / 1000;
      const rate = tokens > 1 && seconds > 0 ? ((tokens - 1) / seconds).toFixed(1) : "–";
      const parts = [`${tokens} tokens`, `${rate} tokens/s`];
      if (first) parts.push(`first after ${Math.round(first - started)} ms`);
      if (ending) parts.push(ending);
      this.stats.textContent = parts.join(" · ");
    };
    try {
      for await (const chunk of streamChat(body, signal)) {
        if (chunk.usage) usage = chunk.usage;
        const choice = chunk.choices?.[0];
        if (!choice) continue;
        if (choice.finish_reason === "length") ending = "cut at its length";
        if (choice.delta.content) {
          last = performance.now();
          first ||= last;
          ++chunks;
          this.text += choice.delta.content;
          this.textNode.append(choice.delta.content);
          onText();
        }
        showStats();
      }
      showStats();
      return true;
    } catch (error) {
      if (error.name === "AbortError") {
        ending = "stopped";
      } else {
        ending = "failed";
        const failure = element("p", error.message, "failure");
        failure.setAttribute("role", "alert");
        this.node.append(failure);
      }
      showStats();
      return false;
    } finally {
      showText(this.textNode, this.text);
      this.node.setAttribute("aria-busy", "false");
    }
  }
}

class Turn {
  constructor(message) {
    this.message = message;
    this.answers = [];
    this.node = element("li", undefined, "turn");
    const mine = element("article", undefined, "you");
    mine.append(element("h3", "You"), element("div", message, "text"));
    this.answersNode = element("div", undefined, "answers");
    this.node.append(mine, this.answersNode);
  }

  // What this model said, or another in its place; null where nobody said anything.
  textFor(model) {
    const answer = this.answers.find((a) => a.model === model && a.text) ||
        this.answers.find((a) => a.text);
    return answer ? answer.text : null;
  }
}

export class Conversation {
  // `scroller` is the element around `list` that scrolls.
  constructor(list, scroller) {
    this.list = list;
    this.scroller = scroller;
    this.turns = [];
    this.abort = null;
  }

  get running() {
    return this.abort !== null;
  }

  clear() {
    this.stop();
    this.turns = [];
    this.list.replaceChildren();
  }

  stop() {
    this.abort?.abort();
  }

  async say(message, models, settings) {
    const turn = new Turn(message);
    this.turns.push(turn);
    this.list.append(turn.node);
    return this.answer(turn, models, settings);
  }

  // The last message again.
  async regenerate(models, settings) {
    return this.answer(this.turns.at(-1), models, settings);
  }

  // Asks all models at once. How many came to their ends.
  async answer(turn, models, settings) {
    const abort = this.abort = new AbortController();
    turn.answers = models.map((model) => new Answer(model));
    turn.answersNode.replaceChildren(...turn.answers.map((answer) => answer.node));
    this.list.classList.toggle("compared", models.length > 1);
    this.scrollToEnd();
    try {
      const ends = await Promise.all(turn.answers.map((answer) => answer.run(
          {...settings.parameters, model: answer.model,
           messages: this.messagesFor(answer.model, turn, settings.system)},
          abort.signal, () => this.follow())));
      this.follow();
      return ends.filter(Boolean).length;
    } finally {
      if (this.abort === abort) this.abort = null;
    }
  }

  messagesFor(model, until, system) {
    const messages = system ? [{role: "system", content: system}] : [];
    for (const turn of this.turns) {
      if (turn === until) {
        messages.push({role: "user", content: turn.message});
        return messages;
      }
      const text = turn.textFor(model);
      if (text === null) continue;  // a message that nobody answered
      messages.push({role: "user", content: turn.message}, {role: "assistant", content: text});
    }
    return messages;
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.turns.at(-1)?.node.scrollIntoView({block: "nearest"});
  }

  // Stays at the end for a reader who is there.
  follow() {
    const s = this.scroller;
    if (s.scrollHeight - s.scrollTop - s.clientHeight < 120) s.scrollTop = s.scrollHeight;
  }
}
