// The status page: one event stream, and the whole status again whenever something happened.

import { learn, setUp } from "./ask.js";
import { byId, copyText, el, say } from "./dom.js";
import { clock, short, words } from "./format.js";
import { show } from "./panels.js";
import { errorText, mayAdminister, postHeaders, readSession, unlockAdmin, unlockReading } from "./session.js";

const REFRESH_MS = 5000;
const LEAST_MS = 700;  // between two reads, however much happens
const FEED_LINES = 10;

let lastRead = 0;
let planned = null;

async function refresh() {
  planned = null;
  lastRead = performance.now();
  try {
    const answer = await fetch("/status.json");
    if (answer.status === 401) {
      if (await unlockReading()) plan(0);
      return;
    }
    if (!answer.ok) throw new Error(await errorText(answer));
    const status = await answer.json();
    learn(status);
    show(status);
  } catch (error) {
    byId("ready").className = "pill bad";
    say("ready", "No answer");
    byId("ready").title = error.message;
  }
  plan(REFRESH_MS);
}

function plan(wait) {
  const due = Math.max(wait, LEAST_MS - (performance.now() - lastRead));
  if (planned !== null) {
    if (planned.at <= performance.now() + due) return;
    clearTimeout(planned.timer);
  }
  planned = { at: performance.now() + due, timer: setTimeout(refresh, due) };
}

function follow() {
  const source = new EventSource("/events");
  const live = byId("live");
  source.onopen = () => { live.className = "live on"; say("live", "Live"); plan(0); };
  source.onerror = () => {
    live.className = "live off";
    say("live", "Reconnecting");
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 5000);
  };
  source.addEventListener("peer", (message) => {
    tell(JSON.parse(message.data));
    plan(0);
  });
}

function tell(event) {
  const feed = byId("feed");
  feed.querySelector(".none")?.remove();
  const said = Object.entries(event.fields)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${value === true ? "yes" : value === false ? "no" : short(String(value), 10, 6)}`)
    .join(" · ");
  feed.prepend(el("li", {}, el("time", {}, clock(event.at_ms)), el("span", {}, el("b", {}, words(event.kind)), said ? ` ${said}` : "")));
  while (feed.children.length > FEED_LINES) feed.lastChild.remove();
}

async function invite() {
  if (!mayAdminister() && !(await unlockAdmin())) return;
  const answer = await fetch("/admin/invite", { method: "POST", headers: postHeaders(), body: "{}" });
  const text = answer.ok ? `nsllm join ${(await answer.json()).invite}` : `No invite: ${await errorText(answer)}`;
  say("invite-text", text);
  say("invite-copy", "Copy");
  byId("invite-copy").hidden = !answer.ok;
  byId("invite-dialog").showModal();
}

async function start() {
  setUp();
  byId("feed").append(el("li", { class: "none" }, el("time", {}, "–"), el("span", {}, "Events of this peer appear here as they happen.")));
  byId("invite").addEventListener("click", invite);
  byId("invite-close").addEventListener("click", () => byId("invite-dialog").close());
  byId("invite-copy").addEventListener("click", async () => {
    await copyText(byId("invite-text").textContent);
    say("invite-copy", "Copied");
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) plan(0); });
  const session = await readSession();
  while (!session.may_read && !(await unlockReading()));
  await refresh();
  follow();
}

start();
