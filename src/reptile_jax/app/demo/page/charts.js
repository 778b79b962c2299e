// Charts as SVG, and the controls below them. A step is a number of inner steps taken.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, children = []) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function html(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export const percent = (p) => (p > 0.995 && p < 1 ? ">99" : Math.round(100 * p)) + " %";

// Most happens in the first steps: the axis is of the root of the step.
const WIDTH = 520, HEIGHT = 190, LEFT = 40, RIGHT = 8, TOP = 8, BOTTOM = 24;
const ticks = (most) => [0, 1, 2, 5, 10, 20, 30, 50].filter((step) => step < 0.8 * most).concat(most);
const across = (step, most) => LEFT + (WIDTH - LEFT - RIGHT) * Math.sqrt(step / most);
const upwards = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share);
const path = (points) => "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

// An empty chart, whose steps can be pointed at.
function frame(holder, most, label, onStep) {
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const step of ticks(most)) {
    const x = across(step, most);
    svg.append(
      element("line", { class: "grid", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
      element("text", { x, y: HEIGHT - 7, class: "tick middle" }, [String(step)]),
    );
  }
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const share = Math.min(1, Math.max(0, (x - LEFT) / (WIDTH - LEFT - RIGHT)));
    onStep(Math.round(share * share * most));
  };
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointermove", (event) => event.buttons && point(event));
  holder.replaceChildren(svg);
  return svg;
}

function cursor(svg, step, most) {
  const x = across(step, most);
  svg.querySelector(".cursor")?.remove();
  svg.append(element("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
}

// Probabilities [steps + 1][classes], one upon the other.
export class Flow {
  constructor(holder, onStep) {
    Object.assign(this, { holder, onStep });
  }

  draw(rows, names) {
    const most = (this.most = rows.length - 1);
    const svg = (this.svg = frame(this.holder, most, "Probabilities over the inner steps", this.onStep));
    const sums = rows.map((row) => row.reduce((all, p) => [...all, all.at(-1) + p], [0]));
    names.forEach((name, index) => {
      const edge = (of) => sums.map((sum, step) => [across(step, most), upwards(sum[of])]);
      const d = path([...edge(index), ...edge(index + 1).reverse()]) + "Z";
      const band = element("path", { d, class: "band" });
      band.style.fill = `var(--class-${index})`;
      svg.append(band);
      const last = rows[most][index];
      if (last > 0.12) {
        const y = upwards((sums[most][index] + sums[most][index + 1]) / 2) + 6;
        svg.append(element("text", { x: WIDTH - RIGHT - 16, y, class: "name middle" }, [name]));
      }
    });
    for (const share of [0, 0.5, 1])
      svg.append(element("text", { x: LEFT - 6, y: upwards(share) + 4, class: "tick end" }, [`${100 * share}%`]));
  }

  at(step) {
    if (this.svg) cursor(this.svg, step, this.most);
  }

  clear(message) {
    this.svg = null;
    this.holder.replaceChildren(html("p", { className: "nothing", textContent: message }));
  }
}

// The losses before each step of several initialisations, by name; one of them is selected.
export class Losses {
  constructor(holder, onStep) {
    Object.assign(this, { holder, onStep });
  }

  draw(losses, selected, most) {
    this.most = most;
    const svg = (this.svg = frame(this.holder, most, "Loss over the inner steps", this.onStep));
    const top = Math.max(1e-9, ...Object.values(losses).map((curve) => Math.max(...curve.slice(0, 2)))) * 1.05;
    const height = (loss) => upwards(Math.min(1, loss / top));
    const names = Object.keys(losses).sort((a) => (a === selected ? 1 : -1));
    for (const name of names) {
      const points = losses[name].map((loss, step) => [across(step, most), height(loss)]);
      const curve = { d: path(points), class: name === selected ? "curve selected" : "curve", "data-start": name };
      svg.append(element("path", curve));
    }
    for (const share of [0, 0.5, 1]) {
      const text = (share * top).toFixed(top > 20 ? 0 : 1);
      svg.append(element("text", { x: LEFT - 6, y: upwards(share) + 4, class: "tick end" }, [text]));
    }
  }

  at(step) {
    if (this.svg) cursor(this.svg, step, this.most);
  }
}

// The step that is shown: a slider, and a button that goes through all steps.
export class Scrub {
  constructor(holder, onStep) {
    this.onStep = onStep;
    this.slider = html("input", { type: "range", min: 0, max: 1, value: 1 });
    this.slider.setAttribute("aria-label", "Inner steps");
    this.label = html("output");
    this.button = html("button", { textContent: "▶ Adapt again", className: "play" });
    this.button.addEventListener("click", () => this.play());
    this.slider.addEventListener("input", () => this.set(Number(this.slider.value)));
    holder.append(this.button, html("label", {}, ["inner steps", this.slider]), this.label);
    this.step = this.chosen = Infinity;
  }

  limit(most) {
    this.most = most;
    this.slider.max = most;
    this.show(Math.min(this.chosen, most));
  }

  set(step) {
    cancelAnimationFrame(this.frame);
    this.chosen = step === this.most ? Infinity : step;
    this.show(step);
  }

  show(step) {
    this.step = step;
    this.slider.value = step;
    this.label.textContent = `${step} of ${this.most}`;
    this.onStep(step);
  }

  play() {
    cancelAnimationFrame(this.frame);
    const end = Math.min(this.chosen, this.most);
    let start = null;
    const tick = (now) => {
      start ??= now;
      const share = Math.min(1, (now - start) / 1400);
      this.show(Math.round(end * share * share));
      if (share < 1) this.frame = requestAnimationFrame(tick);
    };
    this.frame = requestAnimationFrame(tick);
  }
}

// Cards to choose the initialisation by, each with its own answer.
export class Starts {
  constructor(holder, names, onChoose) {
    this.cards = {};
    names.forEach((name) => {
      const card = html("button", { className: "start" }, [
        html("span", { className: "name", textContent: name[0].toUpperCase() + name.slice(1) }),
        html("span", { className: "answer", textContent: "…" }),
      ]);
      card.dataset.start = name;
      card.setAttribute("role", "radio");
      card.addEventListener("click", () => onChoose(name));
      card.addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!by) return;
        event.preventDefault();
        const next = names[(names.indexOf(name) + by + names.length) % names.length];
        onChoose(next);
        this.cards[next].focus();
      });
      this.cards[name] = card;
      holder.append(card);
    });
  }

  choose(chosen) {
    for (const [name, card] of Object.entries(this.cards)) {
      card.setAttribute("aria-checked", name === chosen);
      card.tabIndex = name === chosen ? 0 : -1;
    }
  }

  answer(name, nodes, isStale) {
    const place = this.cards[name].querySelector(".answer");
    place.replaceChildren(...nodes);
    this.cards[name].classList.toggle("stale", isStale);
  }
}
