// The ask box: streams an answer, then follows it until its receipt is anchored.

import { clearAttached, contentWith, setUpAttach, usedNote } from "./attach.js";
import { byId, el, say } from "./dom.js";
import { duration, number, plural, short } from "./format.js";
import { errorText, postHeaders } from "./session.js";

const LEVELS = ["certified", "logged", "anchored"];
const GIVE_UP_MS = 10 * 60 * 1000;
const NOTES = {
  private: "Stays in this peer’s own process. It gets no score and no receipt.",
  group: "Whoever has the group’s key can read question and answer, validators among them; others hold it sealed.",
  public: "Every peer can read question and answer; validators score it and peers may reuse it.",
};

let running = null;  // AbortController of the present question
let model = null;
let validators = null;

/** What the status says that the box needs. */
export function learn(status) {
  model = status.engine.text.name;
  validators = status.consensus.validators ?? null;
  if (!byId("visibility").dataset.touched) setVisibility(status.default_visibility);
}

function setVisibility(value) {
  byId("visibility").value = value;
  say("visibility-note", NOTES[value]);
}

export function setUp() {
  drawLife([]);
  setUpAttach();
  byId("visibility").addEventListener("change", (event) => {
    event.target.dataset.touched = "yes";
    setVisibility(event.target.value);
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("ask-form").requestSubmit();
    }
  });
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (byId("ask").dataset.stops) running?.abort();
    else if (byId("question").value.trim()) ask(byId("question").value.trim());
  });
}

async function ask(question) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  const visibility = byId("visibility").value;
  say("asked", question);
  say("answer", "");
  say("measured", "");
  byId("answer-box").hidden = false;
  byId("download").hidden = true;
  busy(true);
  const life = new Life(visibility);
  try {
    const end = await stream(question, visibility, mine.signal, life);
    busy(false);
    byId("question").value = "";
    clearAttached();
    await life.follow(end, mine.signal);
  } catch (error) {
    if (running === mine) {
      busy(false);
      if (error.name === "AbortError") life.stopped();
      else fail(error, life);
    }
  }
}

function busy(on) {
  byId("answer").setAttribute("aria-busy", on ? "true" : "false");
  const button = byId("ask");
  button.textContent = on ? "Stop" : "Ask";
  if (on) button.dataset.stops = "yes";
  else delete button.dataset.stops;
}

function fail(error, life) {
  byId("answer").append(el("p", { class: "error", role: "alert" }, error.message));
  life.stopped(error.message);
}

/** Show the answer as it comes; returns the `nsllm` object of its last chunk. */
async function stream(question, visibility, signal, life) {
  const began = performance.now();
  const body = {
    ...(model ? { model } : {}),
    messages: [{ role: "user", content: await contentWith(question) }],
    stream: true,
    stream_options: { include_usage: true },
    visibility,
    ...(byId("retrieve").checked ? { retrieve: true } : {}),
  };
  const answer = await fetch("/v1/chat/completions", { method: "POST", headers: postHeaders(), body: JSON.stringify(body), signal });
  if (!answer.ok) throw new Error(await errorText(answer));
  life.begun(answer.headers);
  let end = null;
  let reason = null;
  let tokens = null;
  let first = null;
  for await (const chunk of events(answer.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) {
      first ??= performance.now();
      byId("answer").append(choice.delta.content);
    }
    reason = choice?.finish_reason ?? reason;
    end = chunk.nsllm ?? end;
    tokens = chunk.usage?.completion_tokens ?? tokens;
  }
  if (!end) throw new Error("the answer broke off: the peer ended it without saying why");
  measured(began, first, tokens, reason, [usedNote(end.attachments), citedNote(end.evidence)].filter(Boolean).join(" · "));
  return end;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function measured(began, first, tokens, reason, used) {
  const parts = [];
  if (tokens !== null) parts.push(plural(tokens, "token"));
  if (first !== null) {
    parts.push(`first after ${((first - began) / 1000).toFixed(2)} s`);
    const seconds = (performance.now() - first) / 1000;
    if (tokens > 1 && seconds > 0.05) parts.push(`then ${number((tokens - 1) / seconds, 1)} tokens/s`);
    parts.push("measured in this browser");
  }
  if (used) parts.push(used);
  if (reason === "length") parts.push("cut at its length limit");
  if (reason === "content_filter") parts.push("withheld by a safety layer");
  say("measured", parts.join(" · "));
}

/** The passages that the answer's model read, for the line below it; empty if it read none. */
function citedNote(evidence) {
  return (evidence ?? []).map((row) => `[${row.number}] ${row.source}, characters ${row.span[0]} to ${row.span[1]}`).join(", ");
}

/** What the headers say of where an answer comes from: model, and of a cached one its age, likeness and bound on the error. */
function provenance(headers) {
  const of = (name) => headers.get(`x-nsllm-${name}`);
  const found = [];
  if (of("model-digest")) found.push(`model ${short(of("model-digest"), 10, 6)}`);
  if (of("age-ms")) found.push(`${duration(Number(of("age-ms")) / 1000)} old`);
  if (of("match") === "exact") found.push("the same question");
  if (of("match") === "semantic") found.push(`a like question: similarity ${Number(of("similarity")).toFixed(3)}, wrong here in at most ${(100 * Number(of("error-bound"))).toFixed(2)} %`);
  return found;
}

/** The steps of an answer from its source to its anchor. */
class Life {
  constructor(visibility) {
    this.visibility = visibility;
    this.source = { state: "now", title: "Answering", text: [] };
    this.steps = null;
    this.draw();
  }

  begun(headers) {
    const cached = headers.get("x-nsllm-source") === "cache";
    this.visibility = headers.get("x-nsllm-visibility") ?? this.visibility;
    const by = short(headers.get("x-nsllm-generator"), 8, 4);
    this.source = {
      state: "now",
      title: cached ? "From the cache" : "From this network’s engine",
      text: [cached ? `generated earlier by ${by}, checked before use` : `generated by ${by}`, ...provenance(headers)],
    };
    this.draw();
  }

  stopped(why = "you stopped it") {
    this.source = { ...this.source, state: "no", title: "Not finished", text: [why] };
    this.steps = [];
    this.draw();
  }

  /** Long-poll the receipt through its levels. */
  async follow(end, signal) {
    this.source.state = "done";
    this.end = end;
    const waits = { pending: "with the validators" }[end.publication];
    if (!end.receipt) {
      const why = { private: "private: nothing leaves this peer", unpublished: "below a quality threshold", withheld: "withheld by a safety layer" }[end.publication];
      this.steps = [{ id: "publication", state: "no", title: "Not published", text: [why, end.detail] }];
      this.draw();
      return;
    }
    this.receipt(null, waits);
    const until = performance.now() + GIVE_UP_MS;
    for (const level of LEVELS) {
      for (;;) {
        const answer = await fetch(`${end.receipt}?wait=${level}&timeout_s=20`, { signal });
        if (answer.status === 404) {
          this.steps = [{ id: "publication", state: "no", title: "No receipt", text: [await errorText(answer)] }];
          this.draw();
          return;
        }
        if (!answer.ok) throw new Error(await errorText(answer));
        await answer.arrayBuffer();
        this.receipt(answer.headers, waits);
        const reached = LEVELS.indexOf(answer.headers.get("x-nsllm-receipt"));
        if (reached >= LEVELS.indexOf(level)) break;
        if (performance.now() > until) {
          say("measured", `${byId("measured").textContent} · not ${level} after 10 minutes; the receipt can still be fetched later`);
          return;
        }
      }
    }
  }

  receipt(headers, waits) {
    const at = headers ? LEVELS.indexOf(headers.get("x-nsllm-receipt")) : -1;
    const state = (level) => (at >= level ? "done" : at === level - 1 ? "now" : "todo");
    const score = headers?.get("x-nsllm-score");
    const signers = headers?.get("x-nsllm-signers")?.split(",") ?? [];
    const anchor = headers?.get("x-nsllm-anchor");
    const revoked = headers?.get("x-nsllm-revoked-height");
    const of = validators ? ` of ${validators}` : "";
    this.steps = [
      { id: "publication", state: "done", title: "Published", text: [at < 0 ? waits ?? "signed record" : "signed record"] },
      { id: "score", state: state(0), title: at < 0 ? "Score" : "Agreed score", figure: score ? Number(score).toFixed(3) : null, text: at < 0 ? ["validators are scoring"] : [] },
      {
        id: "certificate",
        state: state(0) === "done" ? "done" : "todo",
        title: headers?.get("x-nsllm-height") ? `Certificate at height ${headers.get("x-nsllm-height")}` : "Certificate",
        text: signers.length ? [`signed by ${signers.length}${of}: ${signers.map((s) => short(s, 6, 4)).join(", ")}`] : [],
      },
      { id: "log", state: state(1), title: at >= 1 ? "In the network log" : "Network log", text: [] },
      { id: "anchor", state: state(2), title: at >= 2 ? "Anchored" : "Anchor", text: anchor ? [`transaction ${short(anchor, 10, 6)}`] : [] },
      ...(revoked ? [{ id: "revoked", state: "no", title: `Revoked at height ${revoked}`, text: ["validators took this record back"] }] : []),
    ];
    if (at >= 0) {
      const link = byId("download");
      link.href = this.end.receipt;
      link.download = `receipt-${this.end.completion_id}.json`;
      link.hidden = false;
    }
    this.draw();
  }

  draw() {
    const who = { private: "this peer only", group: "whoever has the group’s key", public: "every peer" }[this.visibility];
    drawLife([
      { id: "visibility", state: "done", title: `Asked as ${this.visibility}`, text: [`can be read by ${who}`] },
      { id: "source", ...this.source },
      ...(this.steps ?? placeholder().slice(2)),
    ]);
  }
}

const placeholder = () => [
  { id: "visibility", state: "todo", title: "Question", text: [] },
  { id: "source", state: "todo", title: "Answer, generated or from the cache", text: [] },
  { id: "publication", state: "todo", title: "Published as a signed record", text: [] },
  { id: "score", state: "todo", title: "Scored by the validators", text: [] },
  { id: "certificate", state: "todo", title: "Certified by a quorum", text: [] },
  { id: "log", state: "todo", title: "In the network log", text: [] },
  { id: "anchor", state: "todo", title: "Anchored on the chain", text: [] },
];

function drawLife(steps) {
  const items = (steps.length ? steps : placeholder()).map((step) =>
    el("li", { class: step.state, "data-step": step.id, "data-state": step.state },
      el("b", {}, step.title),
      step.figure ? el("span", { class: "figure" }, step.figure) : null,
      step.text.filter(Boolean).map((line) => el("span", {}, line))));
  byId("life").replaceChildren(...items);
}
