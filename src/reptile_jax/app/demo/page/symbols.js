// The first tab: one example of each symbol, a query, and what three initialisations make of them.

import { ask, Worker } from "./ask.js";
import { Flow, html, Losses, percent, Scrub, Starts } from "./charts.js";
import { emptyDrawing, isEmpty, Pad, pixels, SIDE, thumbnail } from "./pad.js";

const LETTERS = "ABCDEFGHIJKLMNOPQRST";
const MOST_QUERIES = 5;
const $ = (id) => document.getElementById(id);
const encoded = (grey) => btoa(String.fromCharCode(...grey));
const pick = (items) => items[Math.floor(Math.random() * items.length)];

export class Symbols {
  constructor(facts, omniglot) {
    Object.assign(this, { facts, omniglot, start: facts.starts[0], ways: facts.ways.usual });
    this.pads = [...LETTERS].map((letter) => this.pad(`Example of ${letter}`, (done) => this.change(done, true)));
    this.queries = [emptyDrawing()];
    this.selected = 0;
    this.query = this.pad("Query", (done) => {
      this.queries[this.selected] = this.query.drawing;
      this.change(done, false);
    });
    $("query").append(this.query.canvas);
    this.answers = {}; // by initialisation, then by query
    this.scrub = new Scrub($("symbols-scrub"), () => this.showStep());
    const toStep = (step) => this.scrub.set(step);
    this.flow = new Flow($("flow"), toStep);
    this.losses = new Losses($("symbols-loss"), toStep);
    this.starts = new Starts($("symbols-starts"), facts.starts, (name) => this.choose(name));
    this.worker = new Worker(
      $("symbols"),
      () => this.say(`compiling for ${this.ways} symbols: a few seconds, once`),
      (message) => this.say(message),
    );
    this.listen();
    this.starts.choose(this.start);
    this.setWays(this.ways);
    this.load();
  }

  pad(label, onChange) {
    return new Pad(label, { onChange: (_, done) => onChange(done), onLoad: (pad) => this.loadInto(pad) });
  }

  listen() {
    for (const button of document.querySelectorAll("#symbols .stepper button"))
      button.addEventListener("click", () => {
        this.setWays(this.ways + Number(button.dataset.by));
        this.change(true, true);
      });
    $("clear").addEventListener("click", () => {
      for (const pad of this.pads) pad.set(emptyDrawing());
      this.setQueries([emptyDrawing()]);
      this.pads[0].canvas.focus({ preventScroll: true });
    });
    $("load").addEventListener("click", () => this.load());
    $("clear-query").addEventListener("click", () => this.query.clear());
    $("load-query").addEventListener("click", () => this.loadInto(this.query));
    $("transductive").addEventListener("change", () => this.change(true, true));
  }

  setWays(ways) {
    const { least, most } = this.facts.ways;
    this.ways = Math.min(most, Math.max(least, ways));
    $("ways").textContent = this.ways;
    const [fewer, more] = document.querySelectorAll("#symbols .stepper button");
    fewer.disabled = this.ways === least;
    more.disabled = this.ways === most;
    for (let index = 0; index < LETTERS.length; index++) {
      const hue = (25 + (360 * index) / this.ways) % 360;
      const lighter = index % 2 && this.ways > 8 ? " + 0.09" : "";
      const color = `oklch(calc(var(--lightness)${lighter}) var(--chroma) ${hue})`;
      $("symbols").style.setProperty(`--class-${index}`, color);
    }
    const cells = this.pads.slice(0, this.ways).map((pad, index) => {
      const cell = html("div", { className: "example" }, [html("b", { textContent: LETTERS[index] }), pad.canvas]);
      cell.style.setProperty("--color", `var(--class-${index})`);
      const clear = html("button", { className: "quiet", textContent: "×", title: `Clear ${LETTERS[index]}` });
      clear.addEventListener("click", () => pad.clear());
      cell.append(clear);
      return cell;
    });
    $("examples").replaceChildren(...cells);
    const columns = this.ways > 10 ? 6 : this.ways === 3 ? 3 : Math.ceil(this.ways / 2);
    $("examples").style.setProperty("--columns", columns);
    $("examples").classList.toggle("many", this.ways > 9);
    this.bars = this.pads.slice(0, this.ways).map((_, index) => {
      const canvas = html("canvas", { width: 64, height: 64 });
      const fill = html("i");
      const value = html("span");
      const bar = html("div", { className: "bar" }, [
        html("b", { textContent: LETTERS[index] }), canvas, html("div", { className: "track" }, [fill]), value,
      ]);
      bar.style.setProperty("--color", `var(--class-${index})`);
      return { bar, canvas, fill, value };
    });
    $("bars").replaceChildren(...this.bars.map(({ bar }) => bar));
    $("bars").classList.toggle("many", this.ways > 9);
  }

  // A character of Omniglot, in the hand of one of those who drew it.
  character(index, hand) {
    const { image, size, drawings } = this.omniglot;
    const picture = html("canvas", { width: SIDE, height: SIDE });
    const context = picture.getContext("2d");
    context.drawImage(image, hand * size, index * size, size, size, 0, 0, SIDE, SIDE);
    const data = context.getImageData(0, 0, SIDE, SIDE);
    for (let i = 0; i < data.data.length; i += 4) {
      data.data[i + 3] = 255 - data.data[i]; // ink alone
      data.data[i] = data.data[i + 1] = data.data[i + 2] = 0;
    }
    context.putImageData(data, 0, 0);
    return { picture, strokes: [], character: index, hand: hand % drawings };
  }

  loaded() {
    return this.pads.slice(0, this.ways).map((pad) => pad.drawing).filter((d) => d.picture);
  }

  loadInto(pad) {
    const { names, drawings } = this.omniglot;
    const shown = this.loaded();
    let drawing;
    if (pad === this.query && shown.length) {
      const { character, hand } = pick(shown);
      drawing = this.character(character, (hand + 1 + Math.floor(Math.random() * (drawings - 1))) % drawings);
    } else {
      const taken = new Set(shown.map(({ character }) => character));
      const free = names.map((_, index) => index).filter((index) => !taken.has(index));
      drawing = this.character(pick(free), Math.floor(Math.random() * drawings));
    }
    pad.set(drawing);
    pad.onChange(pad, true);
  }

  load() {
    const order = this.omniglot.names.map((_, index) => [Math.random(), index]).sort((a, b) => a[0] - b[0]);
    this.pads.slice(0, this.ways).forEach((pad, i) => pad.set(this.character(order[i][1], 0)));
    const query = this.character(order[Math.floor(Math.random() * this.ways)][1], 1);
    this.setQueries([query]);
  }

  setQueries(drawings) {
    this.queries = drawings;
    this.selected = 0;
    this.query.set(drawings[0]);
    this.change(true, true);
  }

  choose(name) {
    this.start = name;
    this.starts.choose(name);
    this.change(true, false);
  }

  // Asks anew: `done` unless a stroke is still being drawn, `adapts` if the examples may be others.
  change(done, adapts) {
    this.done = done;
    this.plays ||= adapts;
    for (const [index, { canvas }] of this.bars.entries()) thumbnail(canvas, this.pads[index].drawing);
    this.drawQueries();
    const missing = [...LETTERS].slice(0, this.ways).filter((_, index) => isEmpty(this.pads[index].drawing));
    if (missing.length) {
      this.answers = {};
      this.say(`Draw an example of ${missing.join(", ")}.`);
      this.show();
      return;
    }
    for (const by of Object.values(this.answers)) for (const answer of Object.values(by)) answer.isStale = true;
    this.worker.run((answered) => this.work(answered));
  }

  async work(answered) {
    const support = this.pads.slice(0, this.ways).map(({ drawing }) => encoded(pixels(drawing, this.facts.size)));
    await this.askFor(this.start, support, this.selected);
    answered();
    if (this.worker.hasNewer) return;
    this.say("");
    const calm = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (this.done && this.plays && calm) this.scrub.play();
    if (!this.done) return;
    this.plays = false;
    this.verdict();
    // What the others say, while nothing else is asked.
    const others = this.facts.starts.filter((name) => name !== this.start).map((name) => [name, this.selected]);
    if (!this.isTransductive)
      for (const query of this.queries.keys()) if (query !== this.selected) others.push([this.start, query]);
    for (const [name, query] of others) {
      if (this.worker.hasNewer) return;
      await this.askFor(name, support, query);
    }
  }

  get isTransductive() {
    return $("transductive").checked;
  }

  async askFor(start, support, query) {
    const ways = this.ways;
    const of = (index) => encoded(pixels(this.queries[index], this.facts.size));
    const drawn = [...this.queries.keys()].filter((index) => index === query || !isEmpty(this.queries[index]));
    const asked = this.isTransductive ? drawn : [query];
    const transductive = this.isTransductive;
    const answer = await ask("symbols", { start, transductive, support, queries: asked.map(of) });
    if (ways !== this.ways) return;
    const by = (this.answers[start] ??= {});
    asked.forEach((index, place) => {
      const rows = answer.probabilities.map((step) => step[place]);
      by[index] = { rows, losses: answer.losses, milliseconds: answer.milliseconds };
    });
    this.show();
  }

  answer(start = this.start, query = this.selected) {
    const found = this.answers[start]?.[query];
    return found && found.rows[0].length === this.ways ? found : null;
  }

  show() {
    const answer = this.answer();
    if (!answer) {
      this.flow.clear("");
      for (const { fill, value, bar } of this.bars) {
        fill.style.width = 0;
        value.textContent = "";
        bar.classList.remove("best");
      }
      for (const name of this.facts.starts) this.starts.answer(name, ["…"], true);
      return;
    }
    const most = answer.rows.length - 1;
    if (isEmpty(this.queries[this.selected])) this.flow.clear("Draw a query, above.");
    else this.flow.draw(answer.rows, [...LETTERS].slice(0, this.ways));
    const losses = {};
    for (const name of this.facts.starts) {
      const found = Object.values(this.answers[name] ?? {})[0];
      if (found && found.losses.length === most) losses[name] = found.losses;
    }
    this.losses.draw(losses, this.start, most);
    this.scrub.limit(most);
    this.drawQueries();
  }

  showStep() {
    const { step } = this.scrub;
    const isDrawn = !isEmpty(this.queries[this.selected]);
    const answer = this.answer();
    if (answer) {
      const row = answer.rows[step];
      const best = row.indexOf(Math.max(...row));
      row.forEach((p, index) => {
        const { bar, fill, value } = this.bars[index];
        fill.style.width = isDrawn ? `${100 * p}%` : 0;
        value.textContent = isDrawn ? percent(p) : "";
        value.title = p;
        bar.dataset.probability = p;
        bar.classList.toggle("best", isDrawn && index === best);
      });
    }
    for (const name of this.facts.starts) {
      const found = this.answer(name);
      if (!found || !isDrawn) continue;
      const row = found.rows[Math.min(step, found.rows.length - 1)];
      const best = row.indexOf(Math.max(...row));
      const letter = html("b", { textContent: LETTERS[best] });
      letter.style.color = `var(--class-${best})`;
      this.starts.answer(name, [letter, " " + percent(row[best])], Boolean(found.isStale));
    }
    this.flow.at(step);
    this.losses.at(step);
  }

  drawQueries() {
    const shown = this.queries.map((drawing, index) => {
      const canvas = html("canvas", { width: 72, height: 72 });
      const answer = this.answer(this.start, index);
      const row = answer && !isEmpty(drawing) ? answer.rows.at(-1) : null;
      const best = row ? row.indexOf(Math.max(...row)) : -1;
      const letter = html("b", { textContent: row ? LETTERS[best] : "·" });
      if (row) letter.style.color = `var(--class-${best})`;
      const button = html("button", { className: "quiet thumb" }, [canvas, letter]);
      button.setAttribute("aria-label", `Query ${index + 1}${row ? ", " + LETTERS[best] : ""}`);
      button.setAttribute("aria-pressed", index === this.selected);
      button.addEventListener("click", () => this.selectQuery(index));
      return { button, canvas, drawing };
    });
    const more = html("button", { className: "quiet thumb more", textContent: "+", title: "Another query" });
    more.addEventListener("click", () => {
      this.queries.push(emptyDrawing());
      this.selectQuery(this.queries.length - 1);
    });
    const buttons = this.queries.length > 1 ? shown.map(({ button }) => button) : [];
    if (this.queries.length < MOST_QUERIES) buttons.push(more);
    $("queries").replaceChildren(...buttons);
    for (const { canvas, drawing } of shown) if (canvas.isConnected) thumbnail(canvas, drawing);
  }

  selectQuery(index) {
    this.selected = index;
    this.query.set(this.queries[index]);
    this.change(true, false);
  }

  verdict() {
    const answer = this.answer();
    if (!answer || isEmpty(this.queries[this.selected])) return this.say("Now draw a query.");
    const row = answer.rows.at(-1);
    const best = row.indexOf(Math.max(...row));
    const spent = Math.round(answer.milliseconds); // more than a second is compilation
    const steps = `${answer.rows.length - 1} inner steps` + (spent < 1000 ? ` in ${spent} ms` : "");
    this.say(`${LETTERS[best]}, ${percent(row[best])}: ${steps}.`);
  }

  say(text) {
    $("symbols-status").textContent = text;
  }

  // The colours of drawings are those of the page.
  repaint() {
    for (const pad of [...this.pads, this.query]) pad.show();
    for (const [index, { canvas }] of this.bars.entries()) thumbnail(canvas, this.pads[index].drawing);
    this.drawQueries();
  }
}
