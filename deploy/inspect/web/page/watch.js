// The page of `douga watch`. It polls /api/run, the only source of its data.
"use strict";

const $ = (id) => document.getElementById(id);
const EVERY = 1000; // milliseconds between two requests
const RESTING = 5000; // the same, if the run is not running
const CALM = 5000; // milliseconds for which the groups shown do not change
const QUIET = ["finished", "not running"];

const state = { tag: "", pairs: 0, shown: new Map() };

// Requests.

async function ask(path, body) {
  const how = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, how);
  const data = await answer.json().catch(() => ({}));
  if (answer.status === 401 && body === undefined) showLogin(true);
  if (!answer.ok) throw Object.assign(new Error(typeof data.detail === "string" ? data.detail : `the server answered with HTTP status ${answer.status}`), { status: answer.status });
  return data;
}

function showLogin(needed) {
  $("login").hidden = !needed;
  if (needed) { $("all").hidden = true; $("token").focus(); }
}

function problem(words) {
  $("problem").textContent = words;
  $("problem").hidden = !words;
}

async function poll() {
  let pause = EVERY;
  try {
    const data = await ask(`api/run?tag=${encodeURIComponent(state.tag)}`);
    problem("");
    showLogin(false);
    show(data);
    if (QUIET.includes(data.status.phase)) pause = RESTING;
  } catch (error) {
    if (error.status === 401) return problem("");
    problem(error instanceof TypeError ? "The server cannot be reached; trying again." : error.message);
  }
  setTimeout(poll, pause);
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await ask("api/login", { token: $("token").value });
    poll();
  } catch (error) {
    problem(error.message);
  }
});

// Display.

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const number = (value, digits = 1) => value.toFixed(digits);
const percent = (value) => `${(100 * value).toFixed(0)} %`;
const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

function time(seconds) {
  const whole = Math.round(seconds), two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600), rest = `${Math.floor((whole % 3600) / 60)}`;
  return hours ? `${hours}:${two(rest)}:${two(whole % 60)}` : `${rest}:${two(whole % 60)}`;
}

function show({ status, lines, groups, curves, lanes }) {
  $("all").hidden = false;
  document.title = `${status.run} · ${status.step}/${status.steps} · douga watch`;
  $("run").textContent = status.run;
  $("phase").textContent = status.phase;
  $("phase").className = QUIET.includes(status.phase) ? "" : "live";
  showWhere(status);
  showPipeline(status);
  if (performance.now() - state.pairs > CALM || !state.shown.size) showGroups(groups);
  if (curves) showCurves(curves);
  showWorkers(status, lines, lanes);
}

function showWhere(status) {
  $("progress").max = status.steps;
  $("progress").value = status.step;
  const groups = Object.entries(status.queue).map(([state, count]) => `${count} ${state}`).join(", ");
  const rows = [
    ["step", status.step, `of ${status.steps}`],
    ["left", status.eta && !QUIET.includes(status.phase) ? time(status.eta) : "–", status.eta && status.phase !== "training" ? "of this phase" : ""],
    ["version", status.version, status.last.push ? `pushed ${time(status.last.push.seconds)} ago` : ""],
    ["lag", number(status.lag.mean), `bound ${status.lag.bound}`],
    ["trained", status.queue.trained || 0, "groups"],
  ];
  $("facts").replaceChildren(...rows.map(([name, value, more]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", {}, `${value} `, make("small", { textContent: more })))));
  const parts = [status.words];
  if (status.resume_command) parts.push(`resume with: ${status.resume_command}`);
  if (groups) parts.push(`groups: ${groups}`);
  if (status.last.refresh) parts.push(`reference refreshed after step ${status.last.refresh.step}`);
  if (status.last.alarm) parts.push(`last alarm after step ${status.last.alarm.step}: ${status.last.alarm.words}`);
  const end = status.last.end;
  if (end && end.words && status.process) parts.push(`the run before ${end.event} after step ${end.step}: ${end.words}`);
  $("words").textContent = parts.join(" · ");
}

// The pipeline: throughput, busy share and waiting workers of each stage, and the bottleneck.

function showPipeline(status) {
  const { rates, queue, roles, bottleneck } = status;
  const waits = (role) => {
    const one = status.workers.find((worker) => worker.name.startsWith(role) && worker.state === "waits");
    if (!one) return "";
    return `${roles[role].waiting} of ${roles[role].workers} wait ${one.words}`;
  };
  const stages = [
    ["", "prompts", Object.values(queue).reduce((sum, one) => sum + one, 0), "taken", queue.pending ? `${queue.pending} pending` : ""],
    ["sampler", many(roles.sampler.workers, "sampler"), number(rates.groups_per_second, 2), "groups/s", waits("sampler")],
    ["rewarder", many(roles.rewarder.workers, "rewarder"), number(rates.clips_per_second), "clips/s", waits("rewarder")],
    ["", "selected", queue.ready || 0, "waiting", queue.tied ? `${queue.tied} tied so far` : ""],
    ["learner", many(roles.learner.workers, "learner"), number(rates.steps_per_minute), "steps/min", waits("learner")],
    ["", "weights", `v${status.version}`, "", `${number(rates.pushes_per_minute)} pushes/min`],
  ];
  $("pipeline").replaceChildren(...stages.map(([role, title, value, unit, words]) => {
    const slowest = role && role === bottleneck;
    const item = make("li", { className: slowest ? "slowest" : "" },
      make("h3", { textContent: title }), make("strong", {}, `${value} `, make("small", { textContent: unit })));
    item.dataset.stage = title;
    if (role) {
      const share = make("i");
      share.style.width = percent(Math.min(1, roles[role].busy)).replace(" ", "");
      item.append(make("div", { className: "share", title: "busy share in the last minutes" }, share));
      item.append(make("p", { textContent: `busy ${percent(roles[role].busy)}` }));
    }
    if (words) item.append(make("p", { textContent: words }));
    if (slowest) item.append(make("span", { className: "tag", textContent: "bottleneck" }));
    return item;
  }));
  $("back").textContent = `samplers load new weights between two groups; rates over the last ${time(status.window)}`;
}

// Groups. A card is kept while its group is shown, so that its video keeps playing.

function showGroups(groups) {
  if (!groups.length) return;
  state.pairs = performance.now();
  const before = state.shown;
  state.shown = new Map(groups.map((pair) => {
    const old = before.get(pair.ordinal);
    return [pair.ordinal, old && (old.dataset.clip === (pair.clip || "") || !pair.clip) ? old : card(pair)];
  }));
  for (const [ordinal, node] of before) if (state.shown.get(ordinal) !== node) discard(node);
  const nodes = [...state.shown.values()];
  nodes.forEach((node, place) => { if ($("pairs").children[place] !== node) $("pairs").insertBefore(node, $("pairs").children[place] || null); });
  for (const pair of groups) state.shown.get(pair.ordinal).querySelector(".state").textContent = pair.state;
  $("newest").hidden = false;
}

function discard(node) {
  const video = node.querySelector("video");
  if (video) { video.onerror = null; video.removeAttribute("src"); video.load(); }
  node.remove();
}

function card(pair) {
  const node = make("figure", { className: "pair" });
  node.dataset.ordinal = pair.ordinal;
  node.dataset.clip = pair.clip || "";
  const side = (one) => make("span", {}, `${one.name} `, make("b", { textContent: number(one.reward) }));
  const caption = make("figcaption", {}, pair.text,
    make("p", { className: "note" }, `group ${pair.ordinal} · version ${pair.version} · weight ${pair.kept.map((one) => number(one.weight, 4)).filter((one, place, all) => all.indexOf(one) === place).join(", ")} · `, make("span", { className: "state" })),
    ...Object.keys(pair.kept[0].scores).map((name) => dimension(name, pair.kept.map((one) => one.scores[name]))));
  node.append(screen(pair), make("div", { className: "sides" }, ...pair.kept.map(side)), caption);
  return node;
}

function screen(pair) {
  if (!pair.clip) return make("div", { className: "screen none", textContent: pair.why });
  const video = make("video", { src: pair.clip, muted: true, loop: true, autoplay: true, playsInline: true, preload: "auto" });
  video.setAttribute("aria-label", `${pair.text}: ${pair.kept.map((one) => one.name).join(", ")}, from left to right`);
  const node = make("div", { className: "screen" }, video);
  video.onloadedmetadata = () => { node.style.aspectRatio = `${video.videoWidth} / ${video.videoHeight}`; };
  video.onerror = () => { node.replaceChildren("the clip no longer exists"); node.className = "screen none"; };
  return node;
}

function dimension(name, scores) {
  const bars = scores.map((value) => {
    const bar = make("i");
    bar.style.width = `${Math.max(0, Math.min(100, value))}%`;
    return bar;
  });
  const [first, ...others] = scores.map((value) => number(value));
  const values = make("span", {}, make("b", { textContent: first }), ...others.map((value) => ` | ${value}`));
  return make("div", { className: "dimension" }, make("span", { textContent: name, title: name }), make("span", { className: "bars" }, ...bars), values);
}

// Curves and the workers' bars come from the server as SVG.

function showCurves({ tag, drawn }) {
  state.tag = tag;
  $("measured").hidden = !drawn.length;
  $("curves").replaceChildren(...drawn.map(({ title, note, now, svg }) => {
    const node = make("div", { className: "card" }, make("h3", {}, title, make("span", { textContent: now })), make("p", { className: "note", textContent: note }));
    node.insertAdjacentHTML("beforeend", svg);
    return node;
  }));
}

function showWorkers(status, lines, lanes) {
  $("working").hidden = !lines.length && !lanes;
  $("workers").replaceChildren(...lines.map((line, place) => {
    const { name, state: how } = status.workers[place];
    return make("li", { className: how }, make("b", { textContent: name }), line.slice(name.length));
  }));
  if (lanes) $("lanes").innerHTML = lanes;
}

poll();
