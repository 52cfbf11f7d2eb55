// The divider between two images, and the brush. The page's own framework does everything else.
"use strict";
(() => {
  const COLOURS = [[86, 180, 233], [240, 228, 66], [0, 158, 115], [213, 94, 0], [204, 121, 167], [230, 159, 0]];
  const painters = {};

  document.addEventListener("input", (event) => {
    if (!event.target.matches?.(".sb-split")) return;
    document.documentElement.style.setProperty("--split", `${event.target.value}%`);
  });

  // A painted mask: one label per pixel of the slice, 0 where nothing is painted.
  class Painter {
    constructor(root) {
      this.rows = Number(root.dataset.rows);
      this.columns = Number(root.dataset.columns);
      this.mask = new Uint8Array(this.rows * this.columns);
      if (root.dataset.mask) this.mask.set(Uint8Array.from(atob(root.dataset.mask), (letter) => letter.charCodeAt(0)));
      this.history = [];
      this.label = 1;
      this.erasing = false;
      this.cursor = [this.columns / 2, this.rows / 2];
      this.root = root;
      this.canvas = root.querySelector("canvas");
      this.canvas.width = this.columns;
      this.canvas.height = this.rows;
      this.area = root.querySelector(".sb-canvas");
      this.size = root.querySelector("[name=size]");
      this.size.max = Math.max(4, Math.round(Math.min(this.rows, this.columns) / 2));
      this.size.value = Math.max(2, Math.round(Math.min(this.rows, this.columns) / 8));
      this.listen();
      if (root.dataset.mask) this.count();
    }

    listen() {
      const area = this.area, find = (name) => this.root.querySelector(`[data-tool=${name}]`);
      area.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        area.setPointerCapture(event.pointerId);
        this.keep();
        this.last = null;
        this.stroke(event);
      });
      area.addEventListener("pointermove", (event) => {
        if (event.buttons & 1) this.stroke(event);
      });
      area.addEventListener("pointerup", () => this.count());
      area.addEventListener("keydown", (event) => this.key(event));
      area.addEventListener("blur", () => { this.aiming = false; this.draw(); });
      for (const name of ["brush", "erase"]) find(name).addEventListener("click", () => {
        this.erasing = name === "erase";
        find("brush").setAttribute("aria-pressed", String(!this.erasing));
        find("erase").setAttribute("aria-pressed", String(this.erasing));
      });
      find("undo").addEventListener("click", () => {
        if (this.history.length) this.mask = this.history.pop();
        this.count();
      });
      find("clear").addEventListener("click", () => { this.keep(); this.mask.fill(0); this.count(); });
      const choice = this.root.querySelector("select");
      const choose = () => {
        this.label = Number(choice.value);
        choice.style.boxShadow = `inset 6px 0 rgb(${COLOURS[(this.label - 1) % COLOURS.length]})`;
      };
      if (choice) {
        choice.addEventListener("change", choose);
        choose();
      }
    }

    keep() {
      this.history.push(this.mask.slice());
      if (this.history.length > 20) this.history.shift();
    }

    stroke(event) {
      const box = this.area.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * this.columns;
      const y = (event.clientY - box.top) / box.height * this.rows;
      const [fromX, fromY] = this.last ?? [x, y];
      const steps = Math.max(1, Math.ceil(Math.hypot(x - fromX, y - fromY)));
      for (let step = 1; step <= steps; step++)
        this.disc(fromX + (x - fromX) * step / steps, fromY + (y - fromY) * step / steps);
      this.last = [x, y];
      this.draw();
    }

    key(event) {
      const step = Math.max(1, Number(this.size.value) / 2);
      const moves = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
      if (moves[event.key]) {
        const [x, y] = [this.cursor[0] + moves[event.key][0], this.cursor[1] + moves[event.key][1]];
        this.cursor = [Math.min(Math.max(x, 0), this.columns), Math.min(Math.max(y, 0), this.rows)];
      } else if (event.key === " " || event.key === "Enter") {
        this.keep();
        this.disc(...this.cursor);
        this.count();
      } else return;
      this.aiming = true;
      event.preventDefault();
      this.draw();
    }

    disc(x, y) {
      const tall = Number(this.root.dataset.aspect) || 1; // height of a pixel over its width
      const radius = Number(this.size.value) / 2, value = this.erasing ? 0 : this.label;
      for (let row = Math.max(0, Math.floor(y - radius / tall)); row < Math.min(this.rows, y + radius / tall + 1); row++)
        for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(this.columns, x + radius + 1); column++)
          if (Math.hypot(column + 0.5 - x, (row + 0.5 - y) * tall) <= radius) this.mask[row * this.columns + column] = value;
    }

    draw() {
      const context = this.canvas.getContext("2d"), pixels = context.createImageData(this.columns, this.rows);
      this.mask.forEach((label, at) => {
        if (!label) return;
        pixels.data.set(COLOURS[(label - 1) % COLOURS.length], 4 * at);
        pixels.data[4 * at + 3] = 140;
      });
      context.putImageData(pixels, 0, 0);
      if (this.aiming) {
        context.strokeStyle = "#fff";
        context.beginPath();
        context.arc(...this.cursor, Number(this.size.value) / 2, 0, 7);
        context.stroke();
      }
    }

    count() {
      this.draw();
      const painted = this.mask.reduce((sum, label) => sum + (label > 0), 0);
      this.root.querySelector("output").textContent = `${painted} pixels painted`;
    }

    read() {
      let text = "";
      for (let at = 0; at < this.mask.length; at += 8192)
        text += String.fromCharCode(...this.mask.subarray(at, at + 8192));
      return btoa(text);
    }
  }

  // What the page hands to the server: the mask of a painter in base64, or nothing.
  window.slicebookMask = (name) => painters[name]?.root.isConnected ? painters[name].read() : "";

  const look = () => document.querySelectorAll(".sb-painter:not([data-ready])").forEach((root) => {
    root.dataset.ready = "";
    painters[root.dataset.name] = new Painter(root);
  });
  const split = () => document.querySelectorAll(".sb-split:not([data-ready])").forEach((range) => {
    range.dataset.ready = "";
    range.value = parseFloat(document.documentElement.style.getPropertyValue("--split")) || 50;
  });
  new MutationObserver(() => { look(); split(); }).observe(document, {childList: true, subtree: true});
})();
