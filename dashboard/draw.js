// Drawings: the tier map, the waterfall of a plan, curves. Each takes data and
// a width, and gives an SVG element that says in words what it shows.

import { cut, link, share, speed, svg, time } from "/dashboard/words.js";

const ROWS = ["cloud", "edge", "end"];
/** Nodes of a tier that are drawn one by one. */
const DRAWN_MAX = 12;

const text = (x, y, words, more = {}) => svg("text", { x, y, ...more }, words);

function drawing(width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

/** Every node that is known, with its parent and its link upwards. */
export function everyone(site) {
  const all = new Map();
  for (const node of site.nodes) all.set(node.id, { ...node });
  const own = all.get(site.node.id);
  site.parents.forEach((parent, at) => {
    let below = own;
    for (const tier of parent.tiers) {
      if (below && (below !== own || at === 0)) below.parent_id = tier.id;
      if (!all.has(tier.id)) {
        const state = parent.state !== "connected" ? "lost" : tier.reachable ? "connected" : "cut off";
        all.set(tier.id, { ...tier, state, link: tier.link_above, parent_id: "" });
      }
      below = all.get(tier.id);
    }
  });
  return [...all.values()];
}

const isHere = (node) => ["connected", "renaming", "doubled"].includes(node.state);

/** The tiers, the links between them, and what a plan uses of them. */
export function tierMap(site, plan, width) {
  const nodes = everyone(site);
  const stages = new Map((plan?.evaluation.stages ?? []).map((stage) => [stage.tier, stage]));
  const rows = ROWS.map((role) => nodes.filter((node) => node.role === role)).filter((row) => row.length > 0);
  // Those that a plan runs on, then those that are there, come first.
  const rank = (node) => (stages.has(node.name) ? 0 : isHere(node) ? 1 : 2);
  rows.forEach((row) => row.sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name)));
  const [box, gap, between] = [54, 10, 74];
  const places = new Map();
  const fit = Math.max(2, Math.min(DRAWN_MAX, Math.floor(width / 112)));
  const height = rows.length * box + Math.max(0, rows.length - 1) * between + 12;
  const here = nodes.filter(isHere).length;
  const image = drawing(width, height, `${nodes.length} nodes, ${here} connected: ${rows.map((row) => `${row.length} ${row[0].role}`).join(", ")}`);
  const boxes = [];
  rows.forEach((row, level) => {
    const more = row.length > fit ? row.length - fit + 1 : 0;
    const drawn = more > 0 ? row.slice(0, fit - 1) : row;
    const count = drawn.length + (more > 0 ? 1 : 0);
    const wide = Math.min(190, (width - gap * (count + 1)) / count);
    const left = (width - count * wide - (count - 1) * gap) / 2;
    const y = 6 + level * (box + between);
    drawn.forEach((node, at) => {
      const x = left + at * (wide + gap);
      places.set(node.id, { x: x + wide / 2, top: y, bottom: y + box });
      boxes.push(nodeBox(node, stages.get(node.name), { x, y, wide, box, own: node.id === site.node.id }));
    });
    if (more > 0) {
      const x = left + drawn.length * (wide + gap) + wide / 2;
      boxes.push(text(x, y + box / 2, `${more} more`, { class: "quiet", "text-anchor": "middle" }));
    }
  });
  for (const node of nodes) {
    const [from, to] = [places.get(node.id), places.get(node.parent_id)];
    if (!from || !to) continue;
    const above = nodes.find((other) => other.id === node.parent_id);
    const used = (plan?.evaluation.links ?? []).some((l) => l.from === node.name && l.to === above.name);
    const kind = isHere(node) && isHere(above) ? (used ? "link used" : "link") : "link gone";
    image.append(svg("line", { x1: from.x, y1: from.top, x2: to.x, y2: to.bottom, class: kind }));
    const [x, y] = [from.x + (to.x - from.x) * 0.3, from.top + (to.bottom - from.top) * 0.38];
    const [fast, far] = link(node.link).split(", ");
    if (!fast) continue;
    image.append(text(x, y, fast, { class: "halo", "text-anchor": "middle" }));
    image.append(text(x, y + 14, far, { class: "quiet halo", "text-anchor": "middle" }));
  }
  image.append(...boxes);
  return image;
}

function nodeBox(node, stage, { x, y, wide, box, own }) {
  const runs = stage && stage.last > stage.first;
  const kind = `node${stage ? " used" : ""}${isHere(node) ? "" : " gone"}`;
  const does = !stage ? "" : runs ? `segments ${stage.first}..${stage.last}` : "passes on";
  const busy = node.load ? `${share(node.load.utilisation)} busy, ${node.load.queued} wait` : "";
  const second = isHere(node) ? does || busy || node.role : node.state;
  const middle = { "text-anchor": "middle" };
  return svg("g", {},
    svg("title", {}, [node.name, node.role, node.state, does, busy].filter(Boolean).join(", ")),
    svg("rect", { x, y, width: wide, height: box, rx: 7, class: kind }),
    text(x + wide / 2, y + 18, cut(own ? `${node.name} (this node)` : node.name, wide - 8, 7.6), { ...middle, class: "name" }),
    text(x + wide / 2, y + 33, cut(second, wide - 8), { ...middle, class: isHere(node) ? "" : "bad" }),
    text(x + wide / 2, y + 47, cut(does && isHere(node) ? busy : "", wide - 8), { ...middle, class: "quiet" }));
}

/** Stages and links one after the other, predicted above measured. */
export function waterfall(explanation, width) {
  const steps = explanation.steps;
  const [row, top] = [50, 20];
  const room = width - 74;
  const sum = (of) => steps.reduce((all, step) => all + (of(step) ?? 0), 0);
  const longest = Math.max(sum((s) => s.predicted_ns), sum((s) => s.measured_ns), 1);
  const scale = (ns) => (ns / longest) * room;
  const measured = explanation.measured_ns === null ? "not measured yet" : `measured ${time(explanation.measured_ns)}`;
  const image = drawing(width, top + steps.length * row + 4, `predicted ${time(explanation.predicted_ns)}, ${measured}`);
  image.append(
    svg("rect", { x: 0, y: 2, width: 10, height: 10, class: "predicted" }), text(15, 11, "predicted"),
    svg("rect", { x: 85, y: 2, width: 10, height: 10, class: "measured" }), text(100, 11, "measured (median)"));
  let [predictedAt, measuredAt] = [0, 0];
  steps.forEach((step, at) => {
    const y = top + at * row;
    const label = `${step.name}: ${step.what}`;
    const bar = (from, ns, dy, kind) => {
      const [x, wide] = [scale(from), Math.max(scale(ns), 1.5)];
      image.append(svg("rect", { x, y: y + dy, width: wide, height: 10, rx: 1.5, class: kind }));
      image.append(text(x + wide + 4, y + dy + 9.5, time(ns), { class: "quiet" }));
    };
    image.append(svg("g", {}, svg("title", {}, label), text(0, y + 13, cut(label, width))));
    bar(predictedAt, step.predicted_ns, 18, "predicted");
    predictedAt += step.predicted_ns;
    if (step.measured_ns !== null) {
      bar(measuredAt, step.measured_ns, 32, "measured");
      measuredAt += step.measured_ns;
    }
  });
  return image;
}

/** Expected latency over the link's speed, with a band for each plan. */
export function sweep(answer, at, width) {
  const points = answer.chosen;
  const [left, right, top, bottom] = [66, 8, 8, 24];
  const height = 190;
  const log = Math.log10;
  const [x0, x1] = [log(points[0].up_bytes_per_s), log(points.at(-1).up_bytes_per_s)];
  const times = points.map((point) => log(Math.max(point.latency_ns, 1)));
  const [low, high] = [Math.min(...times) - 0.1, Math.max(...times) + 0.1];
  const x = (up) => left + ((log(up) - x0) / (x1 - x0)) * (width - left - right);
  const y = (ns) => top + ((high - log(Math.max(ns, 1))) / (high - low)) * (height - top - bottom);
  const image = drawing(width, height, `expected latency at bandwidths from ${speed(points[0].up_bytes_per_s)} to ${speed(points.at(-1).up_bytes_per_s)}`);
  // Bands, one for each run of points with one placement.
  let [from, odd] = [0, false];
  points.forEach((point, i) => {
    const next = points[i + 1];
    if (next && next.placement === point.placement) return;
    const end = next ? (x(point.up_bytes_per_s) + x(next.up_bytes_per_s)) / 2 : width - right;
    const begin = from === 0 ? left : (x(points[from - 1].up_bytes_per_s) + x(points[from].up_bytes_per_s)) / 2;
    image.append(svg("rect", { x: begin, y: top, width: end - begin, height: height - top - bottom, class: odd ? "band odd" : "band" },
      svg("title", {}, point.placement)));
    [from, odd] = [i + 1, !odd];
  });
  // Every second tenfold where there is little room.
  const stride = width < 420 ? 2 : 1;
  for (let tenth = Math.ceil(x0 + log(8)); tenth <= x1 + log(8) + 1e-9; tenth += stride) {
    const up = 10 ** tenth / 8;
    image.append(text(x(up), height - 8, speed(up).replace(".00", "").replace(".0", ""), { class: "quiet", "text-anchor": tenth + 0.2 > x1 + log(8) ? "end" : x(up) < left + 20 ? "start" : "middle" }));
  }
  for (const ns of [10 ** low, 10 ** ((low + high) / 2), 10 ** high]) {
    image.append(text(left - 6, Math.min(Math.max(y(ns) + 4, 14), height - bottom), time(ns), { class: "quiet", "text-anchor": "end" }));
  }
  if (answer.up_bytes_per_s > points[0].up_bytes_per_s && answer.up_bytes_per_s < points.at(-1).up_bytes_per_s) {
    const now = x(answer.up_bytes_per_s);
    image.append(svg("line", { x1: now, x2: now, y1: top, y2: height - bottom, class: "now" }));
    image.append(text(now + (now > width - 60 ? -4 : 4), top + 12, "now", { class: "quiet", "text-anchor": now > width - 60 ? "end" : "start" }));
  }
  image.append(svg("polyline", { points: points.map((p) => `${x(p.up_bytes_per_s)},${y(p.latency_ns)}`).join(" "), class: "curve" }));
  const mark = points[at];
  image.append(
    svg("line", { x1: x(mark.up_bytes_per_s), x2: x(mark.up_bytes_per_s), y1: top, y2: height - bottom, class: "mark" }),
    svg("circle", { cx: x(mark.up_bytes_per_s), cy: y(mark.latency_ns), r: 5, class: "dot" }));
  return image;
}

/** Scores of a job's rounds; `of` names the scores. */
export function curve(rounds, of, width) {
  const [left, top, height, bottom] = [58, 8, 120, 18];
  const image = drawing(width, height, `${of.join(" and ")} over ${rounds.length} rounds`);
  const last = Math.max(2, rounds.at(-1).round);
  const x = (round) => left + ((round - 1) / (last - 1)) * (width - left - 8);
  const values = rounds.flatMap((round) => of.map((name) => round[name])).filter(Number.isFinite);
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 1e-9)];
  const y = (value) => top + ((high - value) / (high - low || 1)) * (height - top - bottom);
  image.append(svg("path", { d: `M${left},${top}V${height - bottom}H${width - 8}`, class: "axis" }));
  image.append(text(left - 4, top + 8, high.toPrecision(2), { class: "quiet", "text-anchor": "end" }));
  image.append(text(left - 4, height - bottom, low.toPrecision(1), { class: "quiet", "text-anchor": "end" }));
  image.append(text(width - 8, height - 4, `round ${last}`, { class: "quiet", "text-anchor": "end" }));
  of.forEach((name, at) => {
    const known = rounds.filter((round) => Number.isFinite(round[name]));
    const points = known.map((round) => `${x(round.round)},${y(round[name])}`).join(" ");
    image.append(svg("polyline", { points, class: at === 0 ? "curve" : "curve second" }));
    image.append(text(left + 8 + at * 90, height - 4, name, { class: at === 0 ? "predicted" : "measured" }));
  });
  return image;
}

/** Shares of a cascade's members over its last steps, one above the other. */
export function rates(service, width) {
  const [left, right, top, high] = [44, 8, 8, 106];
  const wide = width - left - right;
  const sums = service.answers.map((step) => step.reduce((all, count) => all + count, 0));
  const all = sums.reduce((sum, count) => sum + count, 0);
  const of = service.members.map((_, at) => service.answers.reduce((sum, step) => sum + step[at], 0));
  const said = service.members.map((member, at) => `${member} ${share(of[at] / all)}`);
  const seconds = service.answers.length * service.step_s;
  const span = seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
  // As many names in a line as fit.
  let [x, line] = [left, 0];
  const names = said.map((words) => {
    const room = words.length * 7 + 26;
    if (x > left && x + room > width) [x, line] = [left, line + 1];
    const place = { x, y: top + high + 34 + line * 16 };
    x += room;
    return place;
  });
  const height = names.at(-1).y + 6;
  const image = drawing(width, height, `answers of ${service.name} in the last ${span}: ${said.join(", ")}`);
  const bar = wide / service.answers.length;
  service.answers.forEach((step, at) => {
    let done = 0;
    step.forEach((count, member) => {
      if (count === 0) return;
      const part = (count / sums[at]) * high;
      image.append(svg("rect", { x: left + at * bar, y: top + high - done - part, width: Math.max(bar - 1, 1), height: part, class: `share of${member % 3}` },
        svg("title", {}, `${service.members[member]}: ${count} of ${sums[at]}`)));
      done += part;
    });
  });
  image.append(svg("path", { d: `M${left},${top}V${top + high}H${width - right}`, class: "axis" }));
  for (const [of, y] of [[1, top + 8], [0, top + high]]) {
    image.append(text(left - 4, y, share(of), { class: "quiet", "text-anchor": "end" }));
  }
  image.append(text(left, top + high + 13, `${span} ago`, { class: "quiet" }));
  image.append(text(width - right, top + high + 13, "now", { class: "quiet", "text-anchor": "end" }));
  said.forEach((words, member) => {
    const { x, y } = names[member];
    image.append(svg("rect", { x, y: y - 9, width: 10, height: 10, class: `share of${member % 3}` }), text(x + 14, y, words));
  });
  return image;
}
