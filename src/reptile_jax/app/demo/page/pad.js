// A square to draw on, with a finger, the mouse or the keys, and the pixels that the network sees.

// Omniglot's drawings: black lines on white, 105 pixels wide, which the data set samples by nearest neighbour.
export const SIDE = 105;
const LINE = 4.2; // the lines' width there
const STEP = 4; // of the pen, by key

// What is drawn: a character that was loaded, as a picture, and strokes over it.
export const emptyDrawing = () => ({ picture: null, strokes: [] });
export const isEmpty = (drawing) => !drawing.picture && drawing.strokes.length === 0;

function paint(context, drawing, scale) {
  context.setTransform(scale, 0, 0, scale, 0, 0);
  if (drawing.picture) context.drawImage(drawing.picture, 0, 0, SIDE, SIDE);
  Object.assign(context, { lineWidth: LINE, lineCap: "round", lineJoin: "round" });
  for (const stroke of drawing.strokes) {
    context.beginPath();
    context.moveTo(...stroke[0]);
    for (const point of stroke) context.lineTo(...point);
    context.stroke();
  }
}

const raster = document.createElement("canvas");
raster.width = raster.height = SIDE;
const rasterContext = raster.getContext("2d", { willReadFrequently: true });

// The greys [size * size] of a drawing, 0 for ink and 255 for paper, sampled as the data set is.
export function pixels(drawing, size) {
  const context = rasterContext;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, SIDE, SIDE);
  context.strokeStyle = "#000";
  paint(context, drawing, 1);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  const at = (i) => Math.floor(((i + 0.5) * SIDE) / size);
  const grey = new Uint8Array(size * size);
  for (let row = 0; row < size; row++)
    for (let column = 0; column < size; column++)
      grey[row * size + column] = data[4 * (at(row) * SIDE + at(column)) + 3] > 127 ? 0 : 255;
  return grey;
}

// Draws a drawing small, in the colour of the text.
export function thumbnail(canvas, drawing) {
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = "#000";
  paint(context, drawing, canvas.width / SIDE);
  tint(context, canvas);
}

function tint(context, canvas) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = getComputedStyle(canvas).color;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
}

// Calls back with `onChange(pad, done)` while a stroke is drawn and, `done`, when it ends.
export class Pad {
  constructor(label, { onChange, onLoad }) {
    this.drawing = emptyDrawing();
    this.onChange = onChange;
    this.onLoad = onLoad;
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.className = "pad";
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `${label}: a pad to draw on`);
    this.pen = [SIDE / 2, SIDE / 2];
    this.stroke = null; // the one that is being drawn
    this.byKeys = false;
    this.listen();
    new ResizeObserver(() => this.show()).observe(this.canvas);
  }

  set(drawing) {
    this.lift();
    this.drawing = drawing;
    this.show();
  }

  lift() {
    this.stroke = null;
    this.byKeys = false;
  }

  clear() {
    this.set(emptyDrawing());
    this.onChange(this, true);
  }

  undo() {
    this.lift();
    if (this.drawing.strokes.length) this.drawing.strokes.pop();
    else this.drawing.picture = null;
    this.change(true);
  }

  change(done) {
    this.show();
    this.onChange(this, done);
  }

  show() {
    const { canvas } = this;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (!side) return;
    if (canvas.width !== side) canvas.width = canvas.height = side;
    thumbnail(canvas, this.drawing);
    if (document.activeElement !== canvas || !canvas.matches(":focus-visible")) return;
    const context = canvas.getContext("2d"); // the pen of the keys
    context.setTransform(side / SIDE, 0, 0, side / SIDE, 0, 0);
    context.strokeStyle = context.fillStyle = getComputedStyle(canvas).getPropertyValue("--accent");
    context.lineWidth = 2;
    context.beginPath();
    context.arc(...this.pen, 5, 0, 7);
    if (this.byKeys) context.fill();
    else context.stroke();
  }

  listen() {
    const { canvas } = this;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) / box.width) * SIDE,
        ((event.clientY - box.top) / box.height) * SIDE,
      ];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !event.isPrimary) return;
      canvas.setPointerCapture(event.pointerId);
      this.lift();
      this.stroke = [at(event)];
      this.drawing.strokes.push(this.stroke);
      this.change(false);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.stroke || this.byKeys || !event.isPrimary) return;
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) this.stroke.push(at(one));
      this.change(false);
    });
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, () => {
        if (!this.stroke || this.byKeys) return;
        this.lift();
        this.change(true);
      });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.show());
    canvas.addEventListener("blur", () => {
      this.lift();
      this.show();
    });
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const acts = {
      " ": () => this.putDownOrLift(),
      Backspace: () => this.undo(),
      Delete: () => this.clear(),
      l: () => this.onLoad(this),
      L: () => this.onLoad(this),
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = moves[event.key] ? () => this.move(moves[event.key]) : acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  putDownOrLift() {
    if (this.byKeys) {
      this.lift();
      this.change(true);
      return;
    }
    this.byKeys = true;
    this.stroke = [[...this.pen]];
    this.drawing.strokes.push(this.stroke);
    this.change(false);
  }

  move(by) {
    this.pen = this.pen.map((x, axis) => Math.min(SIDE - 2, Math.max(2, x + STEP * by[axis])));
    if (!this.byKeys) return this.show();
    this.stroke.push([...this.pen]);
    this.change(false);
  }
}
