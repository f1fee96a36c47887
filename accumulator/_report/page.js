"use strict";
// Each viewer shows one channel at a time, and zooms by wheel, drag, buttons and keys. Without this script all
// channels are shown below each other.
const nice = (most) => {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].map((digit) => digit * power).find((length) => length <= most * (1 + 1e-9));
};
const lengthText = (number, unit) => (unit === "µm" && number >= 1000
  ? `${(number / 1000).toLocaleString("en")} mm`
  : `${Number(number.toPrecision(4)).toLocaleString("en")} ${unit}`);

for (const viewer of document.querySelectorAll("[data-viewer]")) {
  const views = [...viewer.querySelectorAll("[data-view]")];
  const chooser = viewer.querySelector("select");
  const state = { scale: 1, x: 0, y: 0 };
  const most = 40;

  const stage = () => views.find((view) => !view.hidden).querySelector(".stage");
  const draw = () => {
    const { clientWidth: width, clientHeight: height } = stage();
    state.x = Math.min(0, Math.max(width * (1 - state.scale), state.x));
    state.y = Math.min(0, Math.max(height * (1 - state.scale), state.y));
    for (const image of viewer.querySelectorAll("img")) {
      image.style.transform = `translate(${state.x}px, ${state.y}px) scale(${state.scale})`;
    }
    for (const box of viewer.querySelectorAll(".stage")) {
      const whole = Number(box.dataset.width);
      const length = nice(whole / state.scale / 4);
      box.querySelector("[data-bar] span").textContent = lengthText(length, box.dataset.unit);
      box.querySelector("[data-bar] i").style.width = `${(100 * length * state.scale) / whole}%`;
    }
    viewer.dataset.scale = state.scale.toFixed(2);
  };
  const zoom = (factor, x, y) => {
    const { clientWidth: width, clientHeight: height } = stage();
    const [atX, atY] = [x ?? width / 2, y ?? height / 2];
    const scale = Math.min(most, Math.max(1, state.scale * factor));
    state.x = atX - ((atX - state.x) * scale) / state.scale;
    state.y = atY - ((atY - state.y) * scale) / state.scale;
    state.scale = scale;
    draw();
  };
  const move = (x, y) => {
    state.x += x;
    state.y += y;
    draw();
  };
  const reset = () => {
    Object.assign(state, { scale: 1, x: 0, y: 0 });
    draw();
  };
  const show = (index) => {
    views.forEach((view, i) => { view.hidden = i !== index; });
    draw();
  };

  const actions = { in: () => zoom(1.5), out: () => zoom(1 / 1.5), reset };
  const keys = {
    "+": actions.in, "=": actions.in, "-": actions.out, "0": reset,
    ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0),
    ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
  };
  viewer.querySelector(".tools").hidden = false;
  for (const button of viewer.querySelectorAll("button")) {
    button.addEventListener("click", actions[button.dataset.action]);
  }
  if (chooser) {
    chooser.addEventListener("change", () => show(chooser.selectedIndex));
  }
  for (const view of views) {
    const box = view.querySelector(".stage");
    box.tabIndex = 0;
    box.addEventListener("wheel", (event) => {
      if (event.deltaY > 0 && state.scale === 1) return; // there is nothing to zoom out of: the page scrolls
      event.preventDefault();
      const place = box.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY / 400), event.clientX - place.left, event.clientY - place.top);
    }, { passive: false });
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      box.setPointerCapture(event.pointerId);
      box.classList.add("held");
    });
    box.addEventListener("pointermove", (event) => {
      if (box.classList.contains("held")) move(event.movementX, event.movementY);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      box.addEventListener(end, () => box.classList.remove("held"));
    }
    box.addEventListener("keydown", (event) => {
      const moves = event.key.startsWith("Arrow");
      if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
      if (moves && state.scale === 1) return;
      event.preventDefault();
      keys[event.key]();
    });
  }
  show(chooser ? chooser.selectedIndex : 0);
  addEventListener("resize", draw);
}
