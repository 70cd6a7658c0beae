// Two pictures of one size in one frame: a divider between them, and one zoom for both.  Knows nothing of codecs or of HTTP.

const LARGEST = 32, PIXELS_FROM = 3;

export class Viewer {
  constructor(stage, divider, zoomChanged) {
    Object.assign(this, { stage, divider, zoomChanged, width: 1, height: 1, zoom: 1, x: 0.5, y: 0.5, share: 0.5 });
    this.layers = { left: stage.querySelector('.layer.left'), right: stage.querySelector('.layer.right') };
    this.pointers = new Map();
    new ResizeObserver(() => this.draw()).observe(stage);
    stage.addEventListener('pointerdown', (event) => this.pressed(event));
    stage.addEventListener('pointermove', (event) => this.moved(event));
    for (const name of ['pointerup', 'pointercancel']) stage.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    stage.addEventListener('dblclick', (event) => this.enlarge(2, event));
    stage.addEventListener('wheel', (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.enlarge(Math.exp(-event.deltaY / 200), event);
    }, { passive: false });
    stage.addEventListener('keydown', (event) => this.typed(event));
  }

  // One size for everything that is shown from now on; the whole of it is seen.
  resize(width, height) {
    Object.assign(this, { width, height, zoom: 1, x: 0.5, y: 0.5 });
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.draw();
  }

  show(side, url, words) {
    const image = this.layers[side].querySelector('img');
    if (image.src !== url) image.src = url;
    image.alt = words;
    this.draw();
  }

  canvas(side) {
    return this.layers[side].querySelector('canvas');
  }

  // Put the divider at a share (0 to 1) of the width.
  divide(share) {
    this.share = Math.min(1, Math.max(0, share));
    this.draw();
  }

  // Enlarge by a factor, around a place on the screen or around the middle.
  enlarge(factor, { clientX, clientY } = {}) {
    const box = this.stage.getBoundingClientRect();
    const left = clientX === undefined ? box.width / 2 : clientX - box.left;
    const top = clientY === undefined ? box.height / 2 : clientY - box.top;
    const before = this.place();
    const x = (left - before.left) / before.scale, y = (top - before.top) / before.scale;
    this.zoom = Math.min(LARGEST, Math.max(1, this.zoom * factor));
    const { scale } = this.place();
    this.x = (x + (box.width / 2 - left) / scale) / this.width;
    this.y = (y + (box.height / 2 - top) / scale) / this.height;
    this.draw();
  }

  // Show a place (0 to 1 of width and height) in the middle.
  goTo(x, y, zoom) {
    Object.assign(this, { x, y, zoom });
    this.draw();
  }

  // Where the picture's corner lies in the frame, and how many pixels of the screen one of its own has.
  place() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    const scale = Math.min(width / this.width, height / this.height) * this.zoom;
    const along = (frame, size, middle) => (size * scale <= frame ? (frame - size * scale) / 2
      : Math.min(0, Math.max(frame - size * scale, frame / 2 - middle * size * scale)));
    return { scale, left: along(width, this.width, this.x), top: along(height, this.height, this.y) };
  }

  draw() {
    const { scale, left, top } = this.place();
    if (!Number.isFinite(scale) || !scale) return;
    this.x = (this.stage.clientWidth / 2 - left) / scale / this.width;
    this.y = (this.stage.clientHeight / 2 - top) / scale / this.height;
    for (const layer of Object.values(this.layers)) {
      const sheet = layer.querySelector('.sheet');
      Object.assign(sheet.style, { width: `${this.width}px`, height: `${this.height}px`, transform: `translate(${left}px, ${top}px) scale(${scale})` });
      sheet.classList.toggle('pixels', scale >= PIXELS_FROM);
    }
    const percent = this.share * 100;
    this.layers.right.style.clipPath = `inset(0 0 0 ${percent}%)`;
    this.divider.style.left = `${percent}%`;
    this.divider.setAttribute('aria-valuenow', Math.round(percent));
    this.divider.setAttribute('aria-valuetext', `${Math.round(percent)} % of the width is the left picture`);
    this.stage.classList.toggle('enlarged', this.zoom > 1);
    this.zoomChanged(scale);
  }

  pressed(event) {
    if (event.button) return;
    const dividing = this.divider.contains(event.target);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, dividing });
    this.stage.setPointerCapture(event.pointerId);
    if (dividing) this.divider.focus({ preventScroll: true });
  }

  moved(event) {
    const held = this.pointers.get(event.pointerId);
    if (!held) return;
    const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    Object.assign(held, { x: event.clientX, y: event.clientY });
    if (other) {
      const apart = (x, y) => Math.hypot(x - other.x, y - other.y) || 1;
      const middle = { clientX: (held.x + other.x) / 2, clientY: (held.y + other.y) / 2 };
      this.enlarge(apart(held.x, held.y) / apart(held.x - dx, held.y - dy), middle);
      this.pan(dx / 2, dy / 2);
    } else if (held.dividing || this.zoom === 1) {
      const box = this.stage.getBoundingClientRect();
      this.divide((event.clientX - box.left) / box.width);
    } else {
      this.pan(dx, dy);
    }
  }

  // Move the picture by pixels of the screen.
  pan(dx, dy) {
    const { scale } = this.place();
    this.goTo(this.x - dx / scale / this.width, this.y - dy / scale / this.height, this.zoom);
  }

  typed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const far = event.shiftKey ? 0.1 : 0.02;
    const zooms = { '+': () => this.enlarge(1.5), '=': () => this.enlarge(1.5), '-': () => this.enlarge(1 / 1.5), 0: () => this.goTo(0.5, 0.5, 1) };
    const divides = {
      ArrowLeft: () => this.divide(this.share - far), ArrowRight: () => this.divide(this.share + far),
      ArrowDown: () => this.divide(this.share - far), ArrowUp: () => this.divide(this.share + far),
      PageDown: () => this.divide(this.share - 0.1), PageUp: () => this.divide(this.share + 0.1),
      Home: () => this.divide(0), End: () => this.divide(1),
    };
    const pans = { ArrowLeft: () => this.pan(40, 0), ArrowRight: () => this.pan(-40, 0), ArrowUp: () => this.pan(0, 40), ArrowDown: () => this.pan(0, -40) };
    const keys = { ...zooms, ...(event.target === this.divider ? divides : this.zoom > 1 ? pans : {}) };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }
}
