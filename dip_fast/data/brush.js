"use strict";

// The mask: shown, painted, loaded, kept on the disk after each stroke.

function filled() {
  const count = paint.count(), all = paint.bits.length || 1;
  part("filled").textContent = count
    ? `${(100 * count / all).toFixed(1)}% of the picture is to be filled in: what is magenta.`
    : "Paint over what is to be filled in, or load a mask.";
  part("undo").disabled = !paint.undone.length;
}

paint.changed = () => {
  filled();
  const picture = now.picture, body = paint.packed();
  const address = `mask?${of(picture)}&width=${paint.width}&height=${paint.height}`;
  now.saving = now.saving.then(async () => {
    const kept = await json(address, { method: "POST", body });
    if (picture === now.picture) now.mask = kept.mask;
  }).catch((error) => say(error.message));
};

// What a file, or the picture itself, says is to be filled in; the server reads it, so that it means what it does in a run.
async function loaded(file) {
  if (!file) return;
  const picture = now.picture, name = encodeURIComponent(file.name.toWellFormed?.() ?? file.name);
  const answer = await ask(`mask-file?${of(picture)}&name=${name}`, { method: "POST", body: file });
  const found = await paint.read(await answer.blob());
  if (picture === now.picture) paint.all((i) => found[i]);
}

async function mark(by) {
  const picture = now.picture, answer = await ask(`mask?${of(picture)}&by=${encodeURIComponent(by)}`);
  const found = await paint.read(await answer.blob());
  if (picture === now.picture) paint.all((i) => paint.bits[i] | found[i]);
}

function colourAt(x, y) {
  const page = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  page.drawImage(part("picture"), -x, -y);
  const { data } = page.getImageData(0, 0, 1, 1);
  return `#${[...data.slice(0, 3)].map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

function ready() {
  const canvas = part("mask"), radius = part("radius"), cursor = part("cursor");
  const value = () => Number(document.querySelector("[name=tool]:checked").value);
  const place = (event) => inside(event, canvas).map((at) => at - 0.5);
  const isDropper = () => part("dropper").checked;
  let last = null, box = null;
  const join = (a, b) => (a ? [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])] : b);
  const showCursor = () => {
    cursor.style.left = `${100 * (paint.x + 0.5) / paint.width}%`;
    cursor.style.top = `${100 * (paint.y + 0.5) / paint.height}%`;
    cursor.style.width = `${200 * radius.value / paint.width}%`;
    cursor.style.aspectRatio = "1";
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    if (isDropper()) {
      guarded(mark)(colourAt(...inside(event, canvas).map(Math.floor)));
      return;
    }
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    box = paint.line(last, last, Number(radius.value), value());
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const at = place(each);
      box = join(box, paint.line(last, at, Number(radius.value), value()));
      last = at;
    }
  });
  const end = () => { if (last) { last = null; paint.keep(box); } };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("focus", () => { cursor.hidden = !canvas.matches(":focus-visible"); showCursor(); });
  canvas.addEventListener("blur", () => { cursor.hidden = true; });
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const step = Math.max(1, Math.round(radius.value / 2)), by = steps[event.key];
    if ((event.ctrlKey || event.metaKey) && event.key === "z") paint.undo();
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (by) {
      paint.x = Math.min(paint.width - 1, Math.max(0, paint.x + by[0] * step));
      paint.y = Math.min(paint.height - 1, Math.max(0, paint.y + by[1] * step));
    } else if (event.key === " " && isDropper()) guarded(mark)(colourAt(paint.x, paint.y));
    else if (event.key === " ") paint.keep(paint.line([paint.x, paint.y], [paint.x, paint.y], Number(radius.value), value()));
    else if (event.key === "b") part("brush").checked = true;
    else if (event.key === "e") part("eraser").checked = true;
    else if (event.key === "c") part("dropper").checked = true;
    else if (event.key === "[" || event.key === "]") radius.value = Number(radius.value) + (event.key === "]" ? 1 : -1);
    else return;
    part("radius-shown").textContent = radius.value;
    cursor.hidden = false;
    showCursor();
    event.preventDefault();
  });
  radius.addEventListener("input", () => { part("radius-shown").textContent = radius.value; });
  part("undo").addEventListener("click", () => paint.undo());
  part("clear").addEventListener("click", () => paint.all(() => 0));
  part("invert").addEventListener("click", () => paint.all((i) => 1 - paint.bits[i]));
  part("whole").addEventListener("change", () => part("board").classList.toggle("whole", part("whole").checked));
  part("mask-file").addEventListener("change", guarded((event) => loaded(event.target.files[0])));
  part("by-alpha").addEventListener("click", guarded(() => mark("alpha")));
  part("by-nan").addEventListener("click", guarded(() => mark("nan")));
  for (const field of document.querySelectorAll("[type=file]")) {  // a file that was changed can be chosen once more
    field.addEventListener("click", () => { field.value = ""; });
  }
}
