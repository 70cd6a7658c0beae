// A map of where two pictures differ: root mean square over blocks of 8 x 8 pixels, all channels.  Knows nothing of codecs or of the page.

const BLOCK = 8, MOST = 40;
const COLOURS = [[43, 16, 85], [166, 42, 106], [242, 123, 53], [255, 242, 168]];

async function pixels(url, width, height) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const context = Object.assign(document.createElement('canvas'), { width, height }).getContext('2d', { willReadFrequently: true });
  context.fillStyle = '#fff';
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

// {columns, rows, values, worst: {x, y, value}}: values 0 to 255 row by row, the worst place in 0 to 1 of width and height.
export async function difference(originalUrl, shownUrl, width, height) {
  const [original, shown] = await Promise.all([pixels(originalUrl, width, height), pixels(shownUrl, width, height)]);
  const columns = Math.ceil(width / BLOCK), rows = Math.ceil(height / BLOCK);
  const sums = new Float64Array(columns * rows), counts = new Uint32Array(columns * rows);
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 4) {
      const block = Math.floor(y / BLOCK) * columns + Math.floor(x / BLOCK);
      for (let channel = at; channel < at + 3; channel += 1) sums[block] += (original[channel] - shown[channel]) ** 2;
      counts[block] += 3;
    }
  }
  const values = sums.map((sum, block) => Math.sqrt(sum / counts[block]));
  const block = values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
  const middle = (index, size) => Math.min(1, ((index + 0.5) * BLOCK) / size);
  return { columns, rows, values, worst: { x: middle(block % columns, width), y: middle(Math.floor(block / columns), height), value: values[block] } };
}

export function paint(canvas, map) {
  Object.assign(canvas, { width: map.columns, height: map.rows });
  const context = canvas.getContext('2d'), image = context.createImageData(map.columns, map.rows);
  map.values.forEach((value, index) => {
    const share = Math.min(1, value / MOST), place = share * (COLOURS.length - 1), low = Math.min(COLOURS.length - 2, Math.floor(place));
    const colour = COLOURS[low].map((from, channel) => from + (COLOURS[low + 1][channel] - from) * (place - low));
    image.data.set([...colour, 60 + 180 * Math.sqrt(share)], 4 * index);
  });
  context.putImageData(image, 0, 0);
}
