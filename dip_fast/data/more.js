"use strict";

// What a picture is restored with beside a preset: a guide, a part of it, and what few change.

// The guide: a picture of the same folder, or one that is loaded.
const guide = {
  async list() {
    if (tasks[part("task").value].needs !== "guide" || !now.picture) return;
    const picture = now.picture, folder = picture.startsWith("here/") ? picture.split("/").slice(1, -1).join("/") : "";
    const found = await json(`files?folder=${encodeURIComponent(folder)}`);
    if (picture !== now.picture) return;
    const before = part("guide").value, own = [...part("guide").options].filter((each) => each.value.startsWith("dropped/"));
    const names = found.pictures.map((name) => [`here/${folder ? `${folder}/` : ""}${name}`, name]);
    const others = names.filter(([address]) => address !== picture);
    part("guide").replaceChildren(option("", "choose one"), ...own, ...others.map((each) => option(...each)));
    part("guide").value = before;
    if (part("guide").selectedIndex < 0) part("guide").value = "";
    await this.show();
  },

  // Its size says how many times larger than the picture the result is to be.
  async show() {
    const address = part("guide").value, image = part("guide-picture");
    part("guide-figure").hidden = true;
    if (!address) return;
    image.src = `picture?${of(address)}`;
    try {
      await image.decode();
    } catch {
      await ask(image.src);  // says why
      return;
    }
    part("guide-figure").hidden = false;
    const { naturalWidth: width, naturalHeight: height } = image, times = width / now.width;
    const fits = Number.isInteger(times) && height === times * now.height;
    const field = part("options").querySelector("[data-name=scale]");
    if (fits && field) field.value = times;
    part("guide-size").textContent = `${width}x${height} pixels, ` + (fits
      ? `${times === 1 ? "as the picture" : `${times} times the picture`}; so will the result be.`
      : `which is no whole number of times ${now.width}x${now.height}: align and resize it first.`);
  },

  async load(file) {
    if (!file) return;
    const { picture } = await send(file);
    part("guide").append(option(picture, file.name));
    part("guide").value = picture;
    await this.show();
  },
};

// Where on an element something happens, in pixels of the picture.
function inside(event, element) {
  const box = element.getBoundingClientRect();
  return [(event.clientX - box.left) * now.width / box.width, (event.clientY - box.top) * now.height / box.height];
}

// The part of the picture that is restored: numbers, which can be drawn.
const region = {
  from: null,

  numbers() {
    const text = part("region").value.replaceAll(" ", "");
    if (text === "center") {
      const width = Math.min(256, now.width), height = Math.min(256, now.height);
      return [(now.width - width) >> 1, (now.height - height) >> 1, width, height];
    }
    const found = /^(\d+),(\d+),(\d+),(\d+)$/.exec(text);
    return found && found.slice(1).map(Number);
  },

  show() {
    const numbers = this.numbers(), shown = part("region-shown");
    shown.hidden = !numbers;
    if (!numbers) return;
    const [left, top, width, height] = numbers, percent = (at, all) => `${100 * at / all}%`;
    Object.assign(shown.style, {
      left: percent(left, now.width), top: percent(top, now.height),
      width: percent(width, now.width), height: percent(height, now.height),
    });
  },

  arm(on) {
    part("draw-region").setAttribute("aria-pressed", on);
    document.querySelector(".sheet").classList.toggle("drawing", on);
    this.from = null;
  },

  ready() {
    const sheet = document.querySelector(".sheet"), isArmed = () => sheet.classList.contains("drawing");
    part("draw-region").addEventListener("click", () => this.arm(!isArmed()));
    part("picture").draggable = false;
    sheet.addEventListener("pointerdown", (event) => {
      if (!isArmed() || event.button) return;
      sheet.setPointerCapture(event.pointerId);
      this.from = inside(event, part("picture"));
      event.preventDefault();
    });
    sheet.addEventListener("pointermove", (event) => {
      if (!this.from) return;
      const most = [now.width, now.height], to = inside(event, part("picture"));
      const ends = [0, 1].map((axis) => [this.from[axis], to[axis]]
        .map((at) => Math.min(most[axis], Math.max(0, Math.round(at)))).sort((a, b) => a - b));
      part("region").value = [...ends.map(([low]) => low), ...ends.map(([low, high]) => high - low)].join(",");
      this.show();
    });
    sheet.addEventListener("pointerup", () => {
      if (!this.from) return;
      this.arm(false);
      guarded(costs)();
    });
    sheet.addEventListener("pointercancel", () => this.arm(false));
  },
};

const more = {
  number: (id) => (part(id).value === "" ? null : Number(part(id).value)),

  // As an order has them.
  order() {
    return {
      iterations: this.number("steps"), seed: this.number("seed"), preview: part("region").value.replaceAll(" ", ""),
      max_size: this.number("max-size"), keep_metadata: part("metadata").checked, guide: part("guide").value,
    };
  },

  ready() {
    part("guide").addEventListener("change", guarded(() => guide.show()));
    part("guide-file").addEventListener("change", guarded((event) => guide.load(event.target.files[0])));
    part("region").addEventListener("input", () => region.show());
    for (const id of ["region", "max-size"]) part(id).addEventListener("change", guarded(costs));
    region.ready();
  },
};
