// Reads the node's interface every now and then, and draws it anew.

import { curve, everyone, rates, sweep, tierMap, waterfall } from "/dashboard/draw.js";
import { ago, bytes, el, link, share, speed, table, time } from "/dashboard/words.js";

const PAUSE_MS = 2000;
/** Jobs whose curves are drawn. */
const JOBS_MAX = 8;

const at = (id) => document.getElementById(id);
const show = (id, ...children) => at(id).replaceChildren(...children);
const wide = (id) => Math.max(260, Math.floor(at(id).clientWidth));

/** What was read last, and what the person chose. */
const seen = { site: null, models: [], plan: null, whatIf: null, services: [], numbers: {}, model: "", speedAt: null };

/** A token that was typed in: kept for this tab, sent in a header, never part of an address. */
const TOKEN = "tierline-token";

/** The node wants to know who looks. */
class WhoLooks extends Error {}

async function read(path) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(`/api/v1/${path}`, { cache: "no-store", headers, signal: AbortSignal.timeout(8000) });
  const body = await answer.json();
  const error = body.error ?? `status ${answer.status}`;
  if (answer.status === 401 || (answer.status === 403 && token)) throw new WhoLooks(error);
  if (!answer.ok) throw new Error(error);
  return body;
}

/** Asks for a token, and says why: not again while somebody types. */
function askWhoLooks(why) {
  const tried = sessionStorage.getItem(TOKEN) !== null;
  sessionStorage.removeItem(TOKEN);
  at("main").hidden = true;
  at("sign-in").hidden = false;
  at("sign-out").hidden = true;
  if (tried) at("sign-in-why").textContent = why;
  status("sign in to look at this node", "");
}

/** What can't be read leaves the rest of the page as it is. */
const perhaps = (path) => read(path).catch((error) => ({ failed: error.message }));

async function look() {
  try {
    const [site, models, numbers] = await Promise.all([read("site"), read("models"), read("numbers")]);
    at("main").hidden = false;
    at("sign-in").hidden = true;
    at("sign-out").hidden = sessionStorage.getItem(TOKEN) === null;
    Object.assign(seen, { site, models: models.models, numbers: numbers.numbers });
    chooseModel();
    const name = encodeURIComponent(seen.model);
    const [plan, whatIf, events, jobs, services] = await Promise.all([
      seen.model ? perhaps(`models/${name}`) : { failed: "the site has no models yet" },
      seen.model ? perhaps(`models/${name}/what-if`) : { failed: "the site has no models yet" },
      read("events"),
      perhaps("jobs"),
      perhaps("services"),
    ]);
    Object.assign(seen, { plan, whatIf, services: services.services ?? [] });
    draw();
    drawEvents(events.events);
    await drawJobs(jobs);
    status("live", "good");
  } catch (error) {
    if (error instanceof WhoLooks) askWhoLooks(error.message);
    else status(`no answer from the node: ${error.message}`, "bad");
  }
}

function status(words, kind) {
  const state = at("state");
  // Said again, it would be read aloud again.
  if (state.textContent !== words) state.textContent = words;
  state.className = kind;
}

function chooseModel() {
  const names = seen.models.map((model) => model.name);
  if (!names.includes(seen.model)) Object.assign(seen, { model: names[0] ?? "", speedAt: null });
  const select = at("model");
  if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    select.disabled = names.length === 0;
  }
  select.value = seen.model;
}

function draw() {
  drawSite();
  drawPlan();
  drawWhatIf();
  drawExits();
  drawRates();
}

function drawSite() {
  const { site, plan } = seen;
  const own = site.node;
  at("who").textContent = `${own.name}, ${own.role}, up for ${ago(own.uptime_ms)}${own.draining ? ", stopping" : ""}`;
  document.title = `${own.name} – Tierline`;
  show("map", tierMap(site, plan?.failed ? null : plan, wide("map")));
  const number = (name) => seen.numbers[name] ?? 0;
  const memory = own.memory.reduce((all, kind) => all + kind.bytes, 0);
  const tiles = [
    ["requests answered", number('tierline_requests_total{outcome="ok"}') + number('tierline_requests_total{outcome="degraded"}')],
    ["degraded", number('tierline_requests_total{outcome="degraded"}')],
    ["failed", number('tierline_requests_total{outcome="failed"}')],
    ["requests that wait", own.load?.queued ?? 0],
    ["busy", share(own.load?.utilisation ?? 0)],
    ["memory", bytes(memory)],
    ["sent to other tiers", bytes(number("tierline_sent_bytes_total"))],
    ["changes of plan", number("tierline_plan_switches_total")],
  ];
  show("tiles", ...tiles.map(([what, value]) => el("div", {}, el("dt", {}, what), el("dd", {}, `${value}`))));
  const all = everyone(site);
  const names = new Map(all.map((node) => [node.id, node.name]));
  const rows = all.map((node) => [node.name, node.role, names.get(node.parent_id) ?? "–", node.state, link(node.link) || "–",
    node.load ? `${node.load.queued}` : "–", node.load ? share(node.load.utilisation) : "–"]);
  if (site.left_out > 0) rows.push([`and ${site.left_out} more`, "", "", "", "", "", ""]);
  show("nodes", table("Nodes", ["name", "role", "parent", "state", "link up", "waiting", "busy"], rows));
}

function drawPlan() {
  const { plan } = seen;
  if (plan.failed) {
    at("placement").textContent = plan.failed;
    show("waterfall");
    show("steps");
    return;
  }
  const said = plan.explanation;
  const proof = plan.gap > 0 ? `at most ${share(plan.gap)} from the best` : "proved the best";
  const measured = said.measured_ns === null ? "not measured yet" : `measured ${time(said.measured_ns)}`;
  const other = plan.in_force === plan.placement ? "in force" : `in force: ${plan.in_force}`;
  at("placement").textContent = `${plan.placement}: predicted ${time(said.predicted_ns)}, ${measured}; ${proof}; ${other}`;
  show("waterfall", waterfall(said, wide("waterfall")));
  const rows = said.steps.map((step) => [step.name, step.what, time(step.predicted_ns), step.measured_ns === null ? "–" : time(step.measured_ns)]);
  show("steps", table("Stages and links", ["where", "what", "predicted", "measured"], rows));
}

function drawWhatIf() {
  const answer = seen.whatIf;
  const none = answer.failed ?? (answer.chosen.length === 0 ? "no tier lies above this node: there is no link to change" : "");
  at("what-if").hidden = none !== "";
  at("what-if-none").hidden = none === "";
  at("what-if-none").textContent = none;
  if (none) return;
  const points = answer.chosen;
  const slider = at("speed");
  slider.max = `${points.length - 1}`;
  if (seen.speedAt === null) {
    const apart = points.map((point) => Math.abs(Math.log(point.up_bytes_per_s / Math.max(answer.up_bytes_per_s, 1))));
    seen.speedAt = apart.indexOf(Math.min(...apart));
    slider.value = `${seen.speedAt}`;
  }
  const point = points[Math.min(seen.speedAt, points.length - 1)];
  at("speed-label").textContent = `Bandwidth from ${answer.link[0]} to ${answer.link[1]}: ${speed(point.up_bytes_per_s)} (now ${speed(answer.up_bytes_per_s)})`;
  slider.setAttribute("aria-valuetext", speed(point.up_bytes_per_s));
  const sent = point.links.reduce((all, link) => all + link.bytes, 0);
  const words = `${point.placement}: ${time(point.latency_ns)} expected, ${bytes(sent)} sent`
    + (point.placement === answer.in_force ? ", as now" : "");
  if (at("chosen").textContent !== words) at("chosen").textContent = words;
  show("sweep", sweep(answer, Math.min(seen.speedAt, points.length - 1), wide("sweep")));
}

/** Values of a number by one label: `[[label, value], ...]`. */
function labelled(name) {
  const form = new RegExp(`^${name}\\{\\w+="(.*)"\\}$`);
  return Object.entries(seen.numbers).flatMap(([series, value]) => {
    const found = form.exec(series);
    return found ? [[found[1], value]] : [];
  });
}

function drawExits() {
  const exits = seen.plan.failed ? [] : seen.plan.explanation.exits ?? [];
  if (exits.length === 0) {
    show("exits", el("p", { class: "quiet" }, "the model shown has no early exits"));
  } else {
    show("exits", table("Early exits", ["exit", "on", "reached by", "leave there", "its head takes", "worth"], exits.map((exit) => [
      `${exit.number}`, exit.tier, share(exit.reach), share(exit.leave), time(exit.head_ns), exit.worth === null ? "–" : share(exit.worth),
    ])));
  }
  const rows = (what, name, word) => {
    const values = labelled(name);
    const all = values.reduce((sum, [, value]) => sum + value, 0);
    return values.filter(([, value]) => value > 0).map(([of, value]) => [what, word(of), `${value}`, share(value / all)]);
  };
  const counted = [
    ...rows("answered at", "tierline_exits_total", (exit) => (exit === "0" ? "the model's end" : `exit ${exit}`)),
    ...rows("services: answered by", "tierline_service_answers_total", (member) => member),
    ...rows("degraded by", "tierline_degraded_total", (cause) => cause),
  ];
  show("services", ...(counted.length === 0 ? [] : [table("Answers so far", ["answers", "", "count", "share"], counted)]));
}

/** Who answered for each cascade, over the last minutes. */
function drawRates() {
  const asked = seen.services.filter((service) => service.answers.some((step) => step.some((count) => count > 0)));
  const width = wide("rates");
  show("rates", ...asked.map((service) => el("div", {}, el("h3", {}, `${service.name}: answered by`), rates(service, width))));
}

/** How long something took is no other reason. */
const withoutNumbers = (text) => text.replace(/\d+(\.\d+)?/g, "");

/** Events, newest first; degraded answers in a row for one reason are one. */
function gathered(events) {
  const rows = [];
  for (const event of events.toReversed()) {
    const last = rows.at(-1);
    if (last && event.kind === "degraded" && last.kind === "degraded" && withoutNumbers(last.text) === withoutNumbers(event.text)) {
      Object.assign(last, { count: last.count + 1, since_ms: event.time_ms });
    } else {
      rows.push({ ...event, count: 1, since_ms: event.time_ms });
    }
  }
  return rows;
}

function drawEvents(events) {
  const moment = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
  const text = (row) => row.count > 1 ? `${row.text} (${row.count} times since ${moment(row.since_ms)})` : row.text;
  show("events", ...gathered(events).map((row) => el("li", { class: row.kind },
    el("time", { datetime: new Date(row.time_ms).toISOString() }, moment(row.time_ms)),
    el("span", { class: "kind" }, row.kind), el("span", {}, text(row)))));
}

async function drawJobs(answer) {
  if (answer.failed || answer.jobs.length === 0) {
    show("jobs", el("p", { class: "quiet" }, answer.failed ?? "no jobs"));
    return;
  }
  const jobs = await Promise.all(answer.jobs.slice(0, JOBS_MAX).map((job) => perhaps(`jobs/${job.id}`)));
  const width = wide("jobs");
  show("jobs", ...jobs.filter((job) => !job.failed).map((job) => {
    const said = [`${job.state}, round ${job.round} of ${job.rounds}`, `${job.ready} of ${job.members} members ready`, job.failure, job.waits_for];
    const scores = ["accuracy", "train_loss"].filter((name) => job.curve.some((round) => Number.isFinite(round[name])));
    const drawn = job.curve.length > 0 && scores.length > 0 ? [curve(job.curve, scores, width)] : [];
    return el("div", {}, el("h3", {}, job.name), el("p", {}, said.filter(Boolean).join("; ")), ...drawn);
  }));
}

at("model").addEventListener("change", (event) => {
  Object.assign(seen, { model: event.target.value, speedAt: null });
  look();
});
at("speed").addEventListener("input", (event) => {
  seen.speedAt = Number(event.target.value);
  drawWhatIf();
});
at("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = at("token");
  sessionStorage.setItem(TOKEN, field.value.trim());
  field.value = "";
  at("sign-in-why").textContent = "";
  look();
});
at("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
});
addEventListener("resize", () => { if (seen.site && seen.plan) draw(); });

async function keepLooking() {
  for (;;) {
    // A page that nobody sees asks nothing, nor one that waits for a token.
    if (!document.hidden && at("sign-in").hidden) await look();
    await new Promise((done) => setTimeout(done, PAUSE_MS));
  }
}
keepLooking();
