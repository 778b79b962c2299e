// The second tab: points to drag, and the curves that three initialisations adapt to them.

import { ask, Worker } from "./ask.js";
import { element, html, Losses, Scrub, Starts } from "./charts.js";

const $ = (id) => document.getElementById(id);
const WIDTH = 760, HEIGHT = 430, X = 5, Y = 6;
const toX = (x) => WIDTH * (0.5 + x / (2 * X));
const toY = (y) => HEIGHT * (0.5 - y / (2 * Y));
const clip = (value, limit) => Math.min(limit, Math.max(-limit, value));
const line = (xs, ys) =>
  "M" + xs.map((x, i) => `${toX(x).toFixed(1)} ${toY(clip(ys[i], 3 * Y)).toFixed(1)}`).join("L");

export class Waves {
  constructor(facts) {
    Object.assign(this, { facts, start: facts.starts[0], shots: 10, answers: {} });
    this.svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}` });
    $("plane").append(this.svg);
    this.scrub = new Scrub($("waves-scrub"), () => this.showStep());
    this.losses = new Losses($("waves-loss"), (step) => this.scrub.set(step));
    this.starts = new Starts($("waves-starts"), facts.starts, (name) => this.choose(name));
    this.starts.choose(this.start);
    this.worker = new Worker(
      $("waves"),
      () => this.say(`compiling for ${this.shots} points: a second, once`),
      (message) => this.say(message),
    );
    for (const button of document.querySelectorAll("#waves .stepper button"))
      button.addEventListener("click", () => {
        this.shots = Math.min(20, Math.max(3, this.shots + Number(button.dataset.by)));
        this.newPoints();
      });
    $("new-wave").addEventListener("click", () => this.newWave());
    $("half-wave").addEventListener("click", () => this.newPoints(true));
    this.newWave();
  }

  newWave() {
    this.amplitude = 1.5 + 3 * Math.random();
    this.phase = 2 * Math.PI * Math.random();
    this.newPoints();
  }

  newPoints(onHalf = false) {
    $("shots").textContent = this.shots;
    this.wave = (x) => this.amplitude * Math.sin(x + this.phase);
    const [from, to] = onHalf ? [0.2, 0.96 * X] : [-0.96 * X, 0.96 * X];
    const xs = Array.from({ length: this.shots }, (_, i) => from + ((to - from) * (i + Math.random())) / this.shots);
    this.points = xs.map((x) => [x, this.wave(x)]);
    this.paint();
    this.change(true, true);
  }

  paint() {
    const axes = [
      element("line", { class: "grid", x1: 0, x2: WIDTH, y1: toY(0), y2: toY(0) }),
      element("line", { class: "grid", x1: toX(0), x2: toX(0), y1: 0, y2: HEIGHT }),
    ];
    this.truth = element("path", { class: "truth", d: this.wave ? line(this.facts.grid, this.facts.grid.map(this.wave)) : "" });
    this.paths = {};
    for (const name of this.facts.starts) this.paths[name] = element("path", { class: "curve", "data-start": name });
    this.before = element("path", { class: "before" });
    const circles = this.points.map((point, index) => this.circle(point, index));
    this.svg.replaceChildren(...axes, this.truth, this.before, ...Object.values(this.paths), ...circles);
  }

  circle(point, index) {
    const circle = element("circle", { r: 9, class: "point", tabindex: 0, role: "application" });
    const place = () => {
      circle.setAttribute("cx", toX(point[0]));
      circle.setAttribute("cy", toY(point[1]));
      const [x, y] = point.map((value) => value.toFixed(1));
      circle.setAttribute("aria-label", `Point ${index + 1} at ${x}, ${y}`);
    };
    const move = (x, y, done) => {
      [point[0], point[1]] = [clip(x, X), clip(y, Y)];
      place();
      this.wave = null;
      this.truth.setAttribute("d", "");
      this.change(done, false);
    };
    const drag = (event, done) => {
      const box = this.svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width - 0.5) * 2 * X;
      const y = (0.5 - (event.clientY - box.top) / box.height) * 2 * Y;
      move(x, y, done);
    };
    circle.addEventListener("pointerdown", (event) => circle.setPointerCapture(event.pointerId));
    circle.addEventListener("pointermove", (event) => {
      if (circle.hasPointerCapture(event.pointerId)) drag(event, false);
    });
    circle.addEventListener("pointerup", (event) => drag(event, true));
    circle.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!by) return;
      event.preventDefault();
      move(point[0] + 0.2 * by[0], point[1] + 0.2 * by[1], true);
    });
    place();
    return circle;
  }

  choose(name) {
    this.start = name;
    this.starts.choose(name);
    this.show();
  }

  change(done, plays) {
    this.plays ||= plays;
    this.done = done;
    this.worker.run((answered) => this.work(answered));
  }

  async work(answered) {
    const points = this.points.map((point) => [...point]);
    const order = [this.start, ...this.facts.starts.filter((name) => name !== this.start)];
    for (const start of order) {
      this.answers[start] = await ask("waves", { start, x: points.map(([x]) => x), y: points.map(([, y]) => y) });
      answered();
      if (this.worker.hasNewer) return;
    }
    this.say("");
    this.show();
    const calm = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (this.done && this.plays && calm) this.scrub.play();
    if (this.done) this.plays = false;
  }

  show() {
    const answer = this.answers[this.start];
    if (!answer) return;
    const losses = Object.fromEntries(Object.entries(this.answers).map(([name, { losses }]) => [name, losses]));
    this.losses.draw(losses, this.start, answer.curves.length - 1);
    this.scrub.limit(answer.curves.length - 1);
  }

  showStep() {
    const { step } = this.scrub;
    const { grid } = this.facts;
    for (const [name, { curves, losses }] of Object.entries(this.answers)) {
      const at = Math.min(step, curves.length - 1);
      this.paths[name].setAttribute("d", line(grid, curves[at]));
      this.paths[name].classList.toggle("selected", name === this.start);
      this.starts.answer(name, [html("span", { textContent: "loss " }), html("b", { textContent: losses[at].toFixed(2) })], false);
      if (name === this.start) this.before.setAttribute("d", line(grid, curves[0]));
    }
    this.losses.at(step);
  }

  say(text) {
    $("waves-status").textContent = text;
  }
}
