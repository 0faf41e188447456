"use strict";

const part = (id) => document.getElementById(id);
const tasks = JSON.parse(document.body.dataset.tasks);
const now = { picture: "", width: 0, height: 0, run: "", state: null, mask: "", saving: Promise.resolve(), timer: 0, asked: 0 };

const GONE = "The server does not answer; start dip-fast ui again in the same place, and open its new address.";
const say = (text) => { part("said").textContent = text; };

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error(GONE);
  }
  if (part("said").textContent === GONE) say("");
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error || `the server answers ${answer.status}; open the address that it has printed`);
}

const json = async (path, options) => (await ask(path, options)).json();
const post = (path, order) => json(path, { method: "POST", body: JSON.stringify(order || {}) });
const of = (picture) => `of=${encodeURIComponent(picture)}`;
const guarded = (work) => async (...given) => {
  say("");
  try { await work(...given); } catch (error) { say(error.message); }
};

function option(value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  return made;
}

function entry(text, act) {
  const item = document.createElement("li"), button = document.createElement("button");
  const name = document.createElement("bdi");
  name.textContent = text;
  button.type = "button";
  button.append(name);
  button.addEventListener("click", act);
  item.append(button);
  return item;
}

// Pictures: of the folder, or dropped.

const openFolder = guarded(async (folder) => {
  const found = await json(`files?folder=${encodeURIComponent(folder)}`);
  const inside = (name) => (folder ? `${folder}/${name}` : name);
  part("folder-path").textContent = folder;
  const entries = found.folders.map((name) => entry(`${name}/`, () => openFolder(inside(name))));
  if (folder) entries.unshift(entry("../", () => openFolder(folder.split("/").slice(0, -1).join("/"))));
  const pictures = found.pictures.map((name) => entry(name, () => go(`here/${inside(name)}`)));
  part("folder").replaceChildren(...entries, ...pictures);
  part("folder-empty").hidden = pictures.length > 0;
});

async function send(file) {
  say(`sending ${file.name} ...`);
  const found = await json(`dropped?name=${encodeURIComponent(file.name.toWellFormed?.() ?? file.name)}`, { method: "POST", body: file });
  say("");
  return found;
}

const drop = guarded(async (file) => { if (file) go((await send(file)).picture); });

// The order: task, preset, options, mask.

const openPicture = guarded(async (picture) => {
  if (picture !== now.picture) part("region").value = part("guide").value = "";  // they are of another one
  now.picture = picture;
  part("name").textContent = picture.split("/").pop();
  part("size").textContent = "reading ...";
  part("order").hidden = false;
  part("start").disabled = true;
  now.mask = "";
  const image = part("picture");
  image.removeAttribute("src");
  try {
    await costs();  // first, since it says why a picture cannot be read; no browser does
  } catch (error) {
    if (picture === now.picture) part("size").textContent = "";
    throw error;
  }
  if (picture !== now.picture) return;
  image.src = `picture?${of(picture)}`;
  const draft = await ask(`mask?${of(picture)}`);
  const bits = draft.status === 200 ? await paint.read(await draft.blob()) : null;
  await image.decode();
  if (picture !== now.picture) return;
  part("radius").max = Math.max(100, Math.round(image.naturalWidth / 10));
  image.classList.toggle("pixels", image.naturalWidth < 600);
  paint.open(part("mask"), image.naturalWidth, image.naturalHeight, bits);
  if (bits) paint.changed();  // to know which state it is that is on the disk
  filled();
  region.show();
  part("start").disabled = false;
  await guide.list();
});

async function costs() {
  if (!now.picture) return;
  const { preview, max_size: most } = more.order();
  const asked = new URLSearchParams({ of: now.picture, task: part("task").value, preview, max_size: most ?? "" });
  const found = await json(`costs?${asked}`);
  Object.assign(now, { width: found.width, height: found.height });
  part("size").textContent = `${found.width}x${found.height} pixels`;
  part("by-alpha").hidden = !found.has_alpha;
  part("by-nan").hidden = !found.has_missing;
  const before = part("preset").value;
  part("preset").replaceChildren(option("", "as the task suggests"), ...found.presets.map((preset) => {
    const made = option(preset.name, preset.name + (preset.seconds === null ? "" : `, about ${duration(preset.seconds)}`));
    made.dataset.text = `${preset.summary}; ` + (preset.seconds === null
      ? "what it takes was not measured" : `${duration(preset.seconds)} on two cores as measured, yours may differ`);
    return made;
  }));
  part("preset").value = before;
  if (part("preset").selectedIndex < 0) part("preset").value = "";
  cost();
}

const cost = () => { part("cost").textContent = part("preset").selectedOptions[0]?.dataset.text || ""; };

const duration = (seconds) => {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${Math.round(seconds / 3600)} hours`;
};

function showTask() {
  const task = tasks[part("task").value];
  for (const id of ["tools", "mask", "filled"]) part(id).hidden = task.needs !== "mask";
  part("guide-box").hidden = task.needs !== "guide";
  part("cursor").hidden = true;
  part("options").replaceChildren(...task.options.map((entry) => {
    const label = document.createElement("label");
    const field = document.createElement(entry.kind === "choice" ? "select" : "input");
    if (entry.kind === "choice") field.append(...entry.values.map((value) => option(value, value)));
    else field.type = entry.kind === "bool" ? "checkbox" : entry.kind === "str" ? "text" : "number";
    if (entry.kind === "float") field.step = "any";
    if (entry.kind === "bool") field.checked = entry.default;
    else field.value = entry.default;
    Object.assign(field.dataset, { name: entry.name, kind: entry.kind });
    const help = document.createElement("small");
    help.textContent = ` ${entry.help}`;
    label.append(...(entry.kind === "bool" ? [field, help] : [`${entry.name} `, field, help]));
    return label;
  }));
  guarded(async () => { await costs(); await guide.list(); })();
}

function options() {
  const fields = [...part("options").querySelectorAll("[data-name]")];
  const value = (field) => {
    if (field.dataset.kind === "bool") return field.checked;
    return ["int", "float"].includes(field.dataset.kind) ? Number(field.value) : field.value;
  };
  return Object.fromEntries(fields.map((field) => [field.dataset.name, value(field)]));
}

const start = guarded(async () => {
  part("start").disabled = true;
  try {
    await now.saving;
    const order = {
      picture: now.picture, task: part("task").value, preset: part("preset").value,
      options: options(), mask: now.mask, ...more.order(),
    };
    const { name } = await post("runs", order);
    location.hash = `run/${name}`;
    list();
  } finally {
    part("start").disabled = false;
  }
});

// Runs: what their folders say, again and again.

const words = {
  starting: "Starting ...", running: "At work", done: "Done", interrupted: "Stopped, with what there was by then",
  failed: "Failed", stopped: "It was ended before it had a result",
};

const list = async () => {
  let found;
  try {
    found = await json("runs");
  } catch (error) {
    say(error.message);
    return;
  }
  part("none").hidden = found.length > 0;
  part("list").replaceChildren(...found.map((run) => entry(
    `${run.name}: ${run.task}${run.preset ? `, ${run.preset}` : ""} - ${words[run.status].toLowerCase()}`,
    () => { location.hash = `run/${encodeURIComponent(run.name)}`; },
  )));
};

const watch = async () => {
  clearTimeout(now.timer);
  const name = now.run, asked = now.asked += 1;
  if (!name) return;
  let wait = 3000;
  try {
    const state = await json(`runs/${encodeURIComponent(name)}`);
    if (name !== now.run || asked !== now.asked) return;
    const ended = now.state && now.state.status !== state.status;
    showRun(state);
    if (ended) list();
    if (["starting", "running"].includes(state.status)) wait = 700;
  } catch (error) {
    say(error.message);
  }
  if (asked === now.asked) now.timer = setTimeout(watch, wait);
};

function showRun(state) {
  const summary = state.summary, fresh = JSON.stringify(summary) !== JSON.stringify(now.state?.summary ?? null);
  const first = now.state === null || now.state.name !== state.name, base = `runs/${encodeURIComponent(state.name)}`;
  now.state = state;
  const atWork = ["starting", "running"].includes(state.status), progress = state.progress;
  part("run-name").textContent = state.name;
  part("run-facts").textContent = `${state.picture}: ${state.task}${state.preset ? `, preset ${state.preset}` : ""}`;
  let text = words[state.status];
  if (state.status === "running" && progress) {
    const over = progress.done >= progress.total;
    text = over ? "Writing the result ..." : `${progress.stage}, ${Math.floor(progress.percent)}%`;
    if (progress.seconds_left !== null && !over) text += `, ${duration(progress.seconds_left)} left`;
    if (progress.estimated_psnr !== null) text += `, about ${progress.estimated_psnr.toFixed(1)} dB`;
  }
  part("run-status").textContent = state.error ? `${text}: ${state.error}` : text;
  part("progress").hidden = !atWork;
  if (progress) part("progress").value = progress.percent / 100;
  part("stop").hidden = !atWork;
  part("resume").hidden = !state.can_resume;
  part("notes").replaceChildren(...state.notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = note;
    return item;
  }));
  part("pick").hidden = !summary;
  const there = Boolean(summary) || state.snapshots.length > 0;
  part("stage").hidden = !there;
  part("at-label").hidden = !there || !state.has_input;
  if (summary && (fresh || first)) showChoices(state, base);
  if (!summary && there) {
    const step = state.snapshots.at(-1);
    part("shown").textContent = `The estimate at step ${step}.`;
    look.show(state.has_input && `${base}/look/input`, `${base}/look/${step}`, 1, `estimate at step ${step}`);
  } else if (summary) preview();
  else part("shown").textContent = "";
}

function showChoices(state, base) {
  const { step, strength, first, steps, why, no_blend: noBlend } = state.choices;
  part("step").replaceChildren(...steps.map((each) => option(each, `${each}${each === first ? ", chosen by the fit" : ""}`)));
  part("step").value = step;
  part("step").disabled = steps.length < 2;
  part("strength").value = Math.round(100 * strength);
  part("strength").disabled = Boolean(noBlend);
  part("pick-why").textContent = [
    why && `There are no earlier steps: ${why}.`,
    noBlend && `There is no strength: ${noBlend}.`,
  ].filter(Boolean).join(" ");
  part("link-result").href = `${base}/file/result`;
  part("link-model").hidden = !state.summary.models.some((model) => model.format === "onnx");
  part("link-model").href = `${base}/file/model`;
  part("link-report").href = `${base}/file/report`;
}

function preview() {
  const state = now.state, base = `runs/${encodeURIComponent(state.name)}`, strength = Number(part("strength").value);
  const step = Number(part("step").value), { summary, snapshots } = state;
  part("strength-shown").textContent = `${strength}%`;
  if (part("export").disabled) {
    part("shown").textContent = "Writing ...";
    return;
  }
  const near = snapshots.filter((each) => each <= step).at(-1);
  const input = state.has_input && `${base}/look/input`;
  const unseen = strength < 100 && !input ? " The input is elsewhere, so the answer is shown without it." : "";
  if (step === summary.best_step || near === undefined) {
    look.show(input, `${base}/look/answer?${summary.sha256}`, input ? strength / 100 : 1, "result");
    part("shown").textContent = step === summary.best_step && strength === Math.round(100 * summary.strength)
      ? "The result as it is in the folder." : "Not written yet.";
  } else {
    look.show(input, `${base}/look/${near}`, input ? strength / 100 : 1, `drawing at step ${near}`);
    part("shown").textContent = `What the network drew at step ${near}; the answer, an average, has less noise. Not written yet.`;
  }
  part("shown").textContent += unseen;
}

const pick = guarded(async () => {
  part("export").disabled = true;
  try {
    preview();
    const order = { step: Number(part("step").value) };
    if (!part("strength").disabled) order.strength = Number(part("strength").value) / 100;
    await post(`runs/${encodeURIComponent(now.run)}/pick`, order);
  } finally {
    part("export").disabled = false;
    if (now.state?.summary) preview();
  }
  await watch();
});

const act = (what) => guarded(async () => {
  await post(`runs/${encodeURIComponent(now.run)}/${what}`);
  await watch();
});

// The address holds what is shown, so that a reload shows it again.

function go(picture) {
  const hash = `picture/${encodeURIComponent(picture)}`;
  if (location.hash === `#${hash}`) show();
  else location.hash = hash;
}

function show() {
  const [what, ...rest] = location.hash.slice(1).split("/"), name = decodeURIComponent(rest.join("/"));
  now.run = what === "run" ? name : "";
  now.state = null;
  part("run").hidden = what !== "run";
  part("order").hidden = what !== "picture";
  if (what === "run") {
    part("stage").hidden = part("at-label").hidden = part("pick").hidden = true;
    watch();
  } else if (what === "picture" && name) openPicture(name);
}

part("task").append(...Object.entries(tasks).map(([name, task]) => option(name, `${name}: ${task.summary}`)));
part("task").addEventListener("change", showTask);
part("preset").addEventListener("change", cost);
part("start").addEventListener("click", start);
part("stop").addEventListener("click", act("stop"));
part("resume").addEventListener("click", act("resume"));
part("export").addEventListener("click", pick);
for (const id of ["strength", "step"]) part(id).addEventListener("input", preview);
part("file").addEventListener("change", (event) => drop(event.target.files[0]));
part("folder-box").addEventListener("toggle", () => { if (part("folder-box").open) openFolder(""); });
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    part("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") drop(event.dataTransfer.files[0]);
  });
}
look.open(part("stage"), part("at"));
ready();
more.ready();
showTask();
list();
setInterval(() => { if (!document.hidden) list(); }, 5000);
window.addEventListener("hashchange", show);
if (document.body.dataset.first && !location.hash) go(document.body.dataset.first);
else show();
