"use strict";

// Input and answer in one place: the input up to a line, beyond it the answer, as strongly as it is blended.
const look = {
  stage: null, at: null,

  open(stage, at) {
    Object.assign(this, { stage, at });
    at.addEventListener("input", () => this.move());
    const drag = (event) => {
      if (!(event.buttons & 1)) return;
      const place = stage.getBoundingClientRect();
      at.value = Math.round(100 * (event.clientX - place.left) / place.width);
      this.move();
      event.preventDefault();
    };
    stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
    stage.addEventListener("pointermove", drag);
    this.move();
  },

  move() {
    this.stage.style.setProperty("--at", `${this.at.value}%`);
    this.stage.querySelector(".handle").classList.toggle("end", this.at.value === "0" || this.at.value === "100");
  },

  // Pictures change when they are there, so that nothing flickers.
  async show(input, answer, strength, label) {
    const [left, right, over] = ["left", "right", "over"].map((name) => this.stage.querySelector(`.${name}`));
    const set = async (image, address, alt) => {
      image.alt = alt;
      image.hidden = !address;
      if (!address || image.dataset.of === address) return;
      image.dataset.of = address;
      const next = new Image();
      next.src = address;
      try { await next.decode(); } catch { image.hidden = true; return; }
      image.classList.toggle("pixels", next.naturalWidth < 600);
      if (image.dataset.of === address) image.src = address;
    };
    over.style.opacity = strength;
    await Promise.all([set(left, input, "input"), set(right, input || answer, ""), set(over, answer, label)]);
  },
};
