// The status, panel by panel. A null in the status is shown as "no data", never as a number.

import { byId, chips, copyable, el, facts, fill, say } from "./dom.js";
import { bytes, clock, duration, number, percent, plural, ppm, short, words } from "./format.js";

export function show(status) {
  head(status);
  tiles(status);
  fill("notices", notices(status), (lines) => lines.map((text) => el("p", { class: "notice" }, el("span", {}, text))));
  fill("identity", [status.peer_id, status.address, status.roles, status.multiaddrs, status.network_id], () => identity(status));
  fill("engine", status.engine, engine);
  fill("peers", status.peers, (rows) => peers(rows, status.peer_id));
  fill("consensus", status.consensus, consensus);
  fill("certificates", status.certificates, certificates);
  fill("policy", status.policy, policy);
  fill("cache", status.cache, cache);
  fill("logs", [status.logs, status.anchors], () => logs(status));
  say("version", `NS-LLM ${status.version} · up ${duration(status.uptime_s)}`);
}

function head(status) {
  document.title = `${status.name} · NS-LLM`;
  say("peer-name", status.name);
  say("peer-network", `Peer of the network ${status.network}`);
  const pill = byId("ready");
  const { ready, detail } = status.readiness;
  const halted = status.consensus.halted;
  pill.className = `pill ${halted ? "bad" : ready ? "good" : "warn"}`;
  pill.title = detail;
  say("ready", halted ? "Halted" : ready ? "Ready" : "Not ready");
}

function notices(status) {
  const { ready, detail } = status.readiness;
  const halted = status.consensus.halted;
  const own = [...(halted ? [[halted, `Consensus halted: ${halted}`]] : []), ...(ready ? [] : [[detail, `Not ready: ${detail}`]])];
  const said = (what) => status.notices.some((text) => text.includes(what));
  return [...own.filter(([what]) => !said(what)).map(([, text]) => text), ...status.notices];
}

function tiles(status) {
  const { consensus: c, cache: s, engine: e } = status;
  const connected = status.peers.filter((peer) => peer.connected && peer.peer_id !== status.peer_id).length;
  const lookups = s.hits_local === null || s.hits_remote === null || s.misses === null || s.misses === undefined
    ? null : s.hits_local + s.hits_remote + (s.hits_semantic ?? 0) + s.misses;
  const rows = [
    ["Certified height", number(c.height), c.validators ? `quorum ${c.quorum} of ${plural(c.validators, "validator")}` : "no consensus data"],
    ["Peers connected", number(connected), `of ${number(Math.max(0, status.peers.length - 1))} known`],
    ["Generation speed", e.tokens_per_second === null ? null : `${number(e.tokens_per_second, 1)}`, e.tokens_per_second === null ? "nothing generated yet" : "tokens/s, last finished answers"],
    ["Served from cache", lookups ? percent(s.hits_local + s.hits_remote + (s.hits_semantic ?? 0), lookups) : null, lookups ? `of ${plural(lookups, "look-up")} since start` : "no look-ups yet"],
  ];
  fill("tiles", rows, () => rows.map(([name, value, note]) =>
    el("div", { class: "tile" }, el("h3", {}, name), el("strong", value === null ? { class: "none" } : {}, value ?? "no data"), el("small", {}, note))));
}

function identity(status) {
  return facts([
    ["Peer id", copyable(status.peer_id, "peer id")],
    ["Member", copyable(status.address, "member address")],
    ["Network", copyable(status.network_id, "network id", short(status.network_id, 14, 10))],
    ["Address", status.multiaddrs.length ? el("div", {}, status.multiaddrs.map((address) => copyable(address, "address"))) : null],
    ["Roles", status.roles.length ? chips(status.roles) : null],
  ], "left");
}

function engine(e) {
  const state = { starting: "warn", ready: "strong", restarting: "warn", failed: "warn" }[e.state];
  const kind = (info) => (info.stand_in ? el("span", { class: "chip warn" }, "stand-in, no real model")
    : info.upstream ? el("span", { class: "chip" }, "upstream server, digest of its name only") : null);
  const model = (info) => el("div", {}, info.name, kind(info) ? [" ", kind(info)] : null);
  return facts([
    ["State", el("span", { class: `chip ${state}` }, e.state)],
    ["Text model", model(e.text)],
    ["Precision", `${e.text.dtype}, context ${number(e.text.context_tokens) ?? "of unknown"} tokens`],
    ["Digest", copyable(e.text.digest, "model digest", short(e.text.digest, 14, 10))],
    ["Encoder", model(e.encoder)],
    ...(e.scorer ? [["Scorer", model(e.scorer)]] : []),
    ["Running", `${number(e.active)} now, ${number(e.queued)} waiting`],
    ...(e.stats ? work(e.stats) : []),
    ["Restarts", number(e.restarts)],
  ], "left");
}

function work(s) {
  const share = (value) => (value === null ? null : `${number(100 * value, 0)} %`);
  return [
    ["Runs on", `${s.path} path, ${number(s.threads)} ${s.threads === 1 ? "thread" : "threads"}`],
    ["Last step", s.batch_tokens ? `${number(s.batch_tokens)} tokens in ${number(1000 * s.step_s, 1)} ms` : null],
    ["Keys and values", s.blocks ? `${share(s.cache_usage)} of the memory in use` : null],
    ["Known prompts", s.queried_tokens ? `${share(s.hit_rate)} of prompt tokens not read again` : null],
  ];
}

function peers(rows, own) {
  if (rows.length === 0) return el("p", { class: "note" }, "No peers known yet.");
  const line = (peer) => {
    const mine = peer.peer_id === own;
    const name = peer.address ? short(peer.address, 10, 6) : short(peer.peer_id, 10, 6);
    return el("tr", { class: peer.connected || mine ? "" : "gone" },
      el("td", { title: peer.peer_id },
        el("span", { class: `dot ${peer.connected || mine ? "good" : ""}`, "aria-hidden": "true" }),
        el("span", { class: "code" }, name),
        mine ? [" ", el("span", { class: "chip strong" }, "this peer")] : null,
        peer.address ? null : [" ", el("span", { class: "chip" }, "no member card")]),
      el("td", {}, mine ? "here" : peer.connected ? "connected" : "away"),
      el("td", {}, peer.roles.length ? chips(peer.roles) : el("span", { class: "none" }, "no data")),
      cell("Round trip", mine ? "–" : peer.rtt_ms === null ? null : `${number(peer.rtt_ms, 1)} ms`),
      cell("Height", number(peer.height)));
  };
  return el("table", { class: "stack" },
    el("thead", {}, el("tr", {}, el("th", {}, "Member"), el("th", {}, "State"), el("th", {}, "Roles"), el("th", { class: "num" }, "Round trip"), el("th", { class: "num" }, "Height"))),
    el("tbody", {}, rows.map(line)));
}

const cell = (label, value) => el("td", { class: `num ${value === null ? "none" : ""}`, "data-label": label }, value ?? "no data");

const CONSENSUS = ["height", "epoch", "round", "validators", "quorum", "faults", "pending", "halted", "offences", "observers"];

function consensus(c) {
  const rest = Object.keys(c).filter((key) => !CONSENSUS.includes(key));
  const plain = (value) => (typeof value === "number" ? number(value) : typeof value === "boolean" ? (value ? "yes" : "no") : value === null || value === undefined ? null : String(value));
  return facts([
    ["Height", number(c.height)],
    ["Epoch, round", c.epoch === null || c.epoch === undefined ? null : `${number(c.epoch)}, ${number(c.round) ?? "no data"}`],
    ["Validators", c.validators === null || c.validators === undefined ? null : `${number(c.validators)}, quorum ${number(c.quorum)}`],
    ["May fail", c.faults === null || c.faults === undefined ? null : c.faults === 0 ? "none (f = 0)" : `${number(c.faults)} (f = ${c.faults})`],
    ["Records waiting", number(c.pending)],
    ["Observations", observers(c.observers ?? [])],
    ["State", c.halted ? el("span", { class: "error" }, `halted: ${c.halted}`) : "running"],
    ["Offences", offences(c.offences)],
    ...rest.map((key) => [words(key), plain(c[key])]),
  ]);
}

const OFFENCES = { double_vote: "voted twice", double_proposal: "proposed twice", double_batch: "observed twice", amnesia: "broke its lock" };

/** Validators that a block convicts, by evidence that anybody can check. */
function offences(rows) {
  if (!rows) return null;
  if (rows.length === 0) return "none";
  return el("span", { class: "error" }, rows.map((row) => el("div", { title: `${row.validator}, evidence in block ${row.block}` },
    `${short(row.validator, 8, 4)} ${OFFENCES[row.kind] ?? words(row.kind)} ${row.height === null ? `in epoch ${number(row.epoch)}` : `at height ${number(row.height)}`}`)));
}

/* Only what stands out: a validator that observes in time is the rule. */
function observers(rows) {
  const odd = rows.filter((row) => row.late || row.uncommitted || row.abstained || row.equivocated);
  const said = (row) => [
    `${row.validator.slice(0, 10)}… observed ${number(row.observed)}`,
    row.late ? `${number(row.late)} late` : null,
    row.uncommitted ? `${number(row.uncommitted)} without a commit` : null,
    row.abstained ? `abstained ${number(row.abstained)}${row.reason ? ` (${row.reason})` : ""}` : null,
    row.equivocated ? "contradicted itself" : null,
  ].filter((part) => part !== null).join(", ");
  if (rows.length === 0) return null;
  return odd.length === 0 ? "all in time" : el("span", {}, odd.map((row) => el("div", {}, said(row))));
}

function certificates(rows) {
  if (rows.length === 0) return el("p", { class: "note" }, "None yet. A block is made when there is something to agree on.");
  return el("table", { id: "certificate-table" },
    el("thead", {}, el("tr", {}, el("th", {}, "Height"), el("th", {}, "Time"), el("th", { class: "num" }, "Records"), el("th", { class: "num" }, "Signers"), el("th", { class: "num" }, "Anchor"))),
    el("tbody", {}, rows.slice(0, 6).map((row) => el("tr", {},
      el("td", {}, number(row.height), row.round ? el("span", { class: "none" }, ` round ${row.round}`) : null),
      el("td", {}, clock(row.time_ms)),
      el("td", { class: "num" }, number(row.records)),
      el("td", { class: "num" }, number(row.signers)),
      el("td", { class: "num" }, row.anchor ? "yes" : el("span", { class: "none" }, "–"))))));
}

const THRESHOLDS = {
  toxicity_max_ppm: "Withheld from toxicity",
  coherence_min_ppm: "Published from coherence",
  reuse_min_ppm: "Reused from score",
};

function policy(p) {
  const keys = Object.keys(p);
  const thresholds = keys.filter((key) => key in THRESHOLDS);
  const weights = Object.entries(p.weights ?? {});
  const rest = keys.filter((key) => !(key in THRESHOLDS) && key !== "weights");
  if (keys.length === 0) return el("p", { class: "note" }, "No data.");
  const bar = (name, value) => {
    const inside = el("span", { class: "fill" });
    inside.style.width = `${value / 1e4}%`;
    return el("div", { class: "bar" }, el("span", {}, name), el("div", { class: "track", "aria-hidden": "true" }, inside), el("span", {}, ppm(value, 2)));
  };
  return [
    el("div", { class: "bars" }, thresholds.map((key) => bar(THRESHOLDS[key], p[key]))),
    weights.length ? el("h3", { class: "sub" }, "Weights of the score") : null,
    weights.length ? el("div", { class: "bars" }, weights.map(([name, value]) => bar(words(name), value))) : null,
    rest.length ? el("div", { class: "sub" }, facts(rest.map((key) => [words(key).replace(/ ppm$/, ""), plainly(key, p[key])]))) : null,
  ];
}

function plainly(key, value) {
  if (value === null || value === undefined) return null;
  if (typeof value === "number") return key.endsWith("_ppm") ? ppm(value) : number(value);
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.startsWith("0x") ? el("span", { class: "code", title: text }, short(text, 10, 6)) : text;
}

const CACHE = { records: "Records", bytes: "Size", shards_held: "Shards held", hits_local: "Hits here", hits_remote: "Hits at other peers", hits_semantic: "Answers to like questions", misses: "Misses" };
const CACHE_MORE = { reuse_limit_ppm: "Wrong answers accepted among them", reuse_right: "Generated to compare: agreed", reuse_wrong: "Generated to compare: differed", reuse_audits: "Of these, to keep learning" };

function cache(c) {
  const rest = Object.keys(c).filter((key) => !(key in CACHE));
  return facts([
    ...Object.entries(CACHE).map(([key, name]) => [name, key === "bytes" ? bytes(c[key]) : number(c[key])]),
    ...rest.map((key) => [CACHE_MORE[key] ?? words(key), plainly(key, c[key])]),
  ]);
}

function logs(status) {
  const l = status.logs;
  const root = (value) => (value ? el("span", { class: "code", title: value }, short(value, 10, 6)) : null);
  const anchors = status.anchors.slice(0, 4);
  return [
    facts([
      ["Network log", l.network_log_size === null || l.network_log_size === undefined ? null : plural(l.network_log_size, "entry", "entries")],
      ["Network root", root(l.network_log_root)],
      ["This peer’s log", l.peer_log_size === null || l.peer_log_size === undefined ? null : plural(l.peer_log_size, "entry", "entries")],
      ["Peer root", root(l.peer_log_root)],
      ["Blocks kept from", l.kept_from === null || l.kept_from === undefined ? null : `height ${number(l.kept_from)}`],
      ["Newest snapshot", l.snapshot_height === null || l.snapshot_height === undefined ? null : `height ${number(l.snapshot_height)}`],
    ]),
    el("h3", { class: "sub" }, "Anchors on the embedded chain"),
    anchors.length === 0
      ? el("p", { class: "note" }, "None yet.")
      : facts(anchors.map((anchor) => [
        `${plural(anchor.log_size, "entry", "entries")}`,
        el("span", {}, el("span", { class: "code", title: anchor.tx }, short(anchor.tx, 8, 4)), anchor.certified ? ` at height ${number(anchor.height)}` : " waiting"),
      ])),
  ];
}
