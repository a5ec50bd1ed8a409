// The page of `douga annotate`. Its data comes from /api; the browser stores only the annotator's name and the view.
"use strict";

const $ = (id) => document.getElementById(id);
const SLOW = 0.5;
const APART = 0.1; // maximum drift of two videos, in seconds, before one is set to the other's time
const KEYS = {
  rate: "<kbd>1</kbd>–<kbd>5</kbd> rate · <kbd>↑</kbd> <kbd>↓</kbd> question · <kbd>Enter</kbd> submit · <kbd>U</kbd> undo · <kbd>Space</kbd> pause",
  compare: "<kbd>←</kbd> left · <kbd>→</kbd> right · <kbd>↓</kbd> tie · <kbd>U</kbd> undo · <kbd>Space</kbd> pause",
};

const state = { survey: null, name: localStorage.getItem("name") || "", view: "rate", task: null, marks: {}, now: 0, busy: false };

// Requests.

async function ask(path, body) {
  const how = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, how);
  const data = await answer.json().catch(() => ({}));
  if (answer.status === 401 && path !== "api/login") showOnly("login");
  if (!answer.ok) throw new Error(typeof data.detail === "string" ? data.detail : `the server answered with HTTP status ${answer.status}`);
  return data;
}

// One request at a time, so that a key held down answers only one clip.
async function once(work) {
  if (state.busy) return;
  state.busy = true;
  try {
    await work();
    problem("");
  } catch (error) {
    problem(error instanceof TypeError ? "The server cannot be reached. Your last answer may be lost; try again." : error.message);
  } finally {
    state.busy = false;
  }
}

function problem(words) {
  $("problem").textContent = words;
  $("problem").hidden = !words;
}

function showOnly(id) {
  for (const part of ["login", "naming", "work", "done", "results"]) $(part).hidden = part !== id;
  $("tabs").hidden = $("who").hidden = id === "login" || id === "naming";
  if (id !== "work") clear($("stage"));
  if (id === "login") $("token").focus();
  if (id === "naming") $("name").focus();
}

function clear(node) {
  for (const video of node.querySelectorAll("video")) { video.pause(); video.removeAttribute("src"); video.load(); }
  node.replaceChildren();
}

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Views.

async function start() {
  state.survey = await ask("api/survey");
  $("tabs").querySelector('[data-view="compare"]').hidden = !state.survey.pairs;
  if (!state.name) return showOnly("naming");
  const wanted = location.hash.slice(1) || localStorage.getItem("view") || "rate";
  await open(["rate", "compare", "results"].includes(wanted) ? wanted : "rate");
}

async function open(view) {
  if (view === "compare" && !state.survey.pairs) view = "rate";
  state.view = view;
  localStorage.setItem("view", view);
  history.replaceState(null, "", `#${view}`);
  $("who").textContent = state.name;
  for (const tab of $("tabs").children) tab.setAttribute("aria-current", tab.dataset.view === view);
  if (view === "results") return showResults(await ask("api/results"));
  show(await ask(`api/next?kind=${view}&annotator=${encodeURIComponent(state.name)}`));
}

function show({ task, progress }) {
  const all = progress.mine + progress.left;
  $("progress").max = all || 1;
  $("progress").value = progress.mine;
  $("count").textContent = `${progress.mine} of ${all}`;
  state.task = task;
  $("undo").disabled = !progress.mine;
  $("undo-last").hidden = !progress.mine;
  if (!task) return showOnly("done");
  showOnly("work");
  $("work").className = state.view;
  $("prompt").className = task.conditions.length > 1 ? "two" : "";
  $("prompt").replaceChildren(...task.conditions.map((one) => make("span", { textContent: one.prompt })));
  $("keys").innerHTML = KEYS[state.view];
  const stills = task.conditions.filter((one) => one.first_frame).map((one) => make("img", { src: `frames/${one.first_frame}`, alt: "First frame" }));
  $("still").replaceChildren(...stills, ...(stills.length ? [stills.length > 1 ? "first frames" : "first frame"] : []));
  screen(task.clips);
  if (state.view === "rate") askRatings(task); else askChoice(task);
}

// Videos: all play in sync, in a loop.

function screen(keys) {
  clear($("stage"));
  $("stage").className = keys.length > 1 ? "two" : "one";
  const videos = keys.map((key) => make("video", { src: `clips/${key}`, muted: true, playsInline: true, preload: "auto" }));
  $("stage").append(...videos);
  for (const video of videos) {
    video.onerror = () => { if (video.isConnected) problem("This clip cannot be played. Please tell the person who runs the survey."); };
    video.onended = () => { if (videos.every((one) => one.ended)) play(videos, 0); };
  }
  $("play").dataset.paused = "";
  Promise.all(videos.map(ready)).then(() => play(videos, 0));
  if (videos.length > 1) keepInStep(videos);
}

function ready(video) {
  return new Promise((resolve) => { if (video.readyState >= 3) resolve(); else video.oncanplay = resolve; });
}

function play(videos, from) {
  for (const video of videos) {
    if (from !== undefined) video.currentTime = from;
    video.playbackRate = $("slow").getAttribute("aria-pressed") === "true" ? SLOW : 1;
  }
  const paused = $("play").dataset.paused === "yes";
  $("play").textContent = paused ? "Play" : "Pause";
  for (const video of videos) {
    if (paused) video.pause();
    else if (video.isConnected && !(video.ended && from === undefined)) video.play().catch(() => {});
  }
}

function keepInStep(videos) {
  const [first, ...others] = videos;
  const look = () => {
    if (!first.isConnected) return;
    for (const video of others) {
      const apart = Math.abs(video.currentTime - first.currentTime);
      if (apart > APART && !first.ended && !video.ended && !video.seeking) video.currentTime = first.currentTime;
    }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}

const videos = () => [...$("stage").querySelectorAll("video")];

function togglePlay() {
  $("play").dataset.paused = $("play").dataset.paused === "yes" ? "" : "yes";
  play(videos());
}

function toggleSlow() {
  $("slow").setAttribute("aria-pressed", $("slow").getAttribute("aria-pressed") !== "true");
  play(videos());
}

// Rating.

function askRatings(task) {
  state.marks = { ...(task.said || {}) };
  state.now = 0;
  const rows = state.survey.rubric.dimensions.map((dimension, row) => {
    const marks = [1, 2, 3, 4, 5].map((value) => {
      const button = make("button", { type: "button", textContent: value, onclick: () => mark(row, value) });
      button.setAttribute("aria-label", `${dimension.name} ${value}`);
      return button;
    });
    return make("div", { className: "question" }, make("span", { textContent: dimension.question }), make("div", { className: "marks" }, ...marks), meanings(dimension));
  });
  const submit = make("button", { type: "button", id: "submit", className: "go", textContent: "Submit", onclick: submitRatings });
  $("asking").replaceChildren(...rows, make("div", { className: "submit" }, submit));
  paint();
}

// What the marks mean: two ends beside each other, or a line for each of three anchors.
function meanings({ low, middle, high }) {
  if (!middle) return make("div", { className: "ends" }, make("span", { textContent: low }), make("span", { textContent: high }));
  const lines = [low, middle, high].map((words, place) => make("li", { value: 2 * place + 1, textContent: words }));
  return make("ol", { className: "anchors" }, ...lines);
}

function mark(row, value) {
  const dimensions = state.survey.rubric.dimensions;
  state.marks[dimensions[row].name] = value;
  const open = dimensions.findIndex((one, place) => place > row && !(one.name in state.marks));
  state.now = open >= 0 ? open : Math.min(row + 1, dimensions.length - 1);
  paint();
}

function paint() {
  const dimensions = state.survey.rubric.dimensions;
  $("asking").querySelectorAll(".question").forEach((question, row) => {
    question.classList.toggle("now", row === state.now);
    question.querySelectorAll(".marks button").forEach((button, place) => {
      button.setAttribute("aria-pressed", state.marks[dimensions[row].name] === place + 1);
    });
  });
  $("submit").disabled = dimensions.some((one) => !(one.name in state.marks));
}

function submitRatings() {
  if ($("submit").disabled) return;
  once(async () => show(await ask("api/rate", { annotator: state.name, item: state.task.item, ratings: state.marks })));
}

// Comparing.

const SIDES = { left: "Left is better", tie: "Tie", right: "Right is better" };

function askChoice(task) {
  const buttons = Object.entries(SIDES).map(([side, words]) => {
    const button = make("button", { type: "button", textContent: words, onclick: () => choose(side) });
    button.dataset.side = side;
    button.setAttribute("aria-pressed", task.said === side);
    return button;
  });
  $("asking").replaceChildren(make("div", { className: "choices" }, ...buttons));
}

function choose(side) {
  once(async () => show(await ask("api/choose", { annotator: state.name, item: state.task.item, side })));
}

function undo() {
  once(async () => show(await ask("api/undo", { annotator: state.name, kind: state.view })));
}

// Results.

const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function table(title, heads, rows) {
  const head = make("tr", {}, ...heads.map((words) => make("th", { textContent: words })));
  const body = rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", { textContent: cell }))));
  return [make("h2", { textContent: title }), make("div", { className: "scroll" }, make("table", {}, head, ...body))];
}

function showResults(found) {
  showOnly("results");
  const agreeing = found.ratings.map((one) => [one.dimension, one.answers, number(one.alpha)]);
  agreeing.push(["comparisons", found.annotators.reduce((sum, one) => sum + one.compared, 0), number(found.pairs.alpha)]);
  $("results").replaceChildren(
    ...table("Agreement, Krippendorff's alpha", ["", "answers", "alpha"], agreeing),
    ...table("Annotators", ["", "rated", "compared"], found.annotators.map((one) => [one.name, one.rated, one.compared])),
    make("p", { className: "note", textContent: `${found.clips.rated} of ${found.clips.all} clips rated, ${found.clips.complete} of them by all annotators; ${found.pairs.answered} of ${found.pairs.all} pairs compared, ${found.pairs.complete} of them by all annotators.` }),
  );
}

// Keyboard.

const COMPARE_KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  if (event.target.matches("button") && (event.key === " " || event.key === "Enter")) return; // the button handles the key itself
  if ($("work").hidden) {
    if (!$("done").hidden && event.key.toLowerCase() === "u") undo();
    return;
  }
  if (press(event.key, event.repeat)) event.preventDefault();
});

function press(key, repeated) {
  if (key === " ") return togglePlay(), true;
  if (repeated) return false;
  if (key.toLowerCase() === "u") return undo(), true;
  if (state.view === "compare") return key in COMPARE_KEYS && (choose(COMPARE_KEYS[key]), true);
  const last = state.survey.rubric.dimensions.length - 1;
  if (/^[1-5]$/.test(key)) return mark(state.now, Number(key)), true;
  if (key === "ArrowDown") return (state.now = Math.min(state.now + 1, last)), paint(), true;
  if (key === "ArrowUp") return (state.now = Math.max(state.now - 1, 0)), paint(), true;
  return key === "Enter" && (submitRatings(), true);
}

// Remove the focus from a clicked button, so that keys answer the survey again.
document.addEventListener("click", (event) => { if (event.detail) event.target.closest("button")?.blur(); });

$("play").onclick = togglePlay;
$("slow").onclick = toggleSlow;
$("undo").onclick = $("undo-last").onclick = undo;
$("tabs").onclick = (event) => { if (event.target.dataset.view) once(() => open(event.target.dataset.view)); };
$("who").onclick = () => { state.name = ""; localStorage.removeItem("name"); $("name").value = ""; showOnly("naming"); };
$("naming").onsubmit = (event) => {
  event.preventDefault();
  state.name = $("name").value.trim();
  localStorage.setItem("name", state.name);
  once(start);
};
$("login").onsubmit = (event) => {
  event.preventDefault();
  once(async () => { await ask("api/login", { token: $("token").value }); await start(); });
};
once(start);
