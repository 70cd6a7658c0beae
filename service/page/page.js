// The page: chooses a photo and a size, asks the service to compare, shows what comes back.

import { difference, paint } from './difference.js';
import { bytesOf, curlLine, fillFigures, fillStages, label, number, summary } from './report.js';
import { Viewer } from './viewer.js';

const $ = (id) => document.getElementById(id);
const USUAL_BPP = 0.155, LEAST_BPP = 0.03, MOST_BPP = 1.5, LEAST_BYTES = 200;
const PAUSE_MS = 400;

let photo = null; // {file, name, url, width, height, scaled}; url is null where this browser cannot show it
let compared = null; // {reply, bytes, photo}
let asked = null; // AbortController of the comparison under way
let key = '';
let timers = [];
const sides = { left: 'original', right: 'sdc' };
const maps = new Map();
const viewer = new Viewer($('stage'), $('divider'), (scale) => { $('zoom').textContent = `${number(scale, scale < 10 ? 1 : 0)}×`; });

// -- the photo

async function choose(file, name, scaled = false) {
  cancel();
  if (photo?.url) URL.revokeObjectURL(photo.url);
  photo = { file, name, scaled, url: null, width: 0, height: 0 };
  try {
    const bitmap = await createImageBitmap(file);
    Object.assign(photo, { url: URL.createObjectURL(file), width: bitmap.width, height: bitmap.height });
    bitmap.close();
    $('size').disabled = false;
    setBytes(Math.round(Math.max(LEAST_BYTES, bytesAt(USUAL_BPP))));
  } catch { // the service says what is wrong with it, or knows the type that this browser does not
    $('size').disabled = true;
  }
  await compare();
}

// As many pixels as the service compares, scaled down here and sent losslessly.
async function scaleDown(maxPixels) {
  const bitmap = await createImageBitmap(photo.file);
  const scale = Math.sqrt(maxPixels / (bitmap.width * bitmap.height));
  const canvas = Object.assign(document.createElement('canvas'), { width: Math.floor(bitmap.width * scale), height: Math.floor(bitmap.height * scale) });
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const file = await new Promise((resolve) => { canvas.toBlob(resolve, 'image/png'); });
  await choose(file, `${photo.name.replace(/\.[^.]*$/, '')}-${canvas.width}x${canvas.height}.png`, true);
}

// -- its size

const bytesAt = (bpp) => (bpp * photo.width * photo.height) / 8;
const range = () => [Math.max(LEAST_BYTES, bytesAt(LEAST_BPP)), Math.max(4 * LEAST_BYTES, bytesAt(MOST_BPP))];

function setBytes(bytes) {
  $('bytes').value = bytes;
  sizeChanged();
}

function sizeChanged() {
  const bytes = Number($('bytes').value);
  if (!photo?.url) return;
  const [least, most] = range();
  $('size').value = (1000 * Math.log(bytes / least)) / Math.log(most / least);
  $('size').setAttribute('aria-valuetext', `${number(bytes)} bytes`);
  $('size-hint').textContent = `${number((8 * bytes) / (photo.width * photo.height), 3)} bits for each of ${photo.width} × ${photo.height} pixels; `
    + `the photo you chose has ${number(photo.file.size)} bytes, ${number(photo.file.size / bytes)} times as many.`;
}

function slid() {
  const [least, most] = range();
  setBytes(Math.round(least * (most / least) ** ($('size').value / 1000)));
}

// -- asking

function compareSoon() {
  clearTimers();
  timers.push(setTimeout(compare, PAUSE_MS));
}

function clearTimers() {
  timers.forEach((timer) => { clearTimeout(timer); clearInterval(timer); });
  timers = [];
}

function cancel() {
  clearTimers();
  asked?.abort();
  asked = null;
  $('busy').hidden = true;
}

async function compare() {
  if (!photo) return;
  cancel();
  $('problem').hidden = true;
  if (!$('bytes').checkValidity()) return complain('This size cannot be.', 'Give a whole number of bytes, 32 or more.');
  const controller = asked = new AbortController(), bytes = Number($('bytes').value), mine = photo;
  const began = performance.now();
  const tell = () => { $('status').textContent = `Compressing and comparing ${mine.name}… ${Math.floor((performance.now() - began) / 1000)} s`; };
  tell();
  timers.push(setInterval(tell, 1000));
  $('busy').hidden = false;
  if (compared?.photo !== mine) $('busy').scrollIntoView({ block: 'nearest' });
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const reply = await fetch(`/compare?max_bytes=${bytes}`, { method: 'POST', body: mine.file, headers, signal: controller.signal });
    const body = await reply.json();
    if (asked !== controller) return;
    cancel();
    if (reply.ok) await show(body, bytes, mine);
    else refused(reply, body);
  } catch (error) {
    if (asked !== controller) return; // cancelled, or overtaken by another
    cancel();
    complain('The service did not answer.', `It may have stopped, or the connection was lost (${error.message}).`, 'Try again', compare);
  }
}

function refused(reply, problem) {
  const wait = Number(reply.headers.get('Retry-After'));
  if (reply.status === 401 || reply.status === 403) $('key-form').hidden = false;
  if (problem.max_pixels && photo.url) return complain(problem.title, `${problem.detail}.`, 'Scale it down here and compare that', () => scaleDown(problem.max_pixels));
  if (problem.best_bytes) return complain(problem.title, `${problem.detail}.`, `Use ${number(problem.best_bytes)} bytes`, () => { setBytes(problem.best_bytes); compare(); });
  complain(problem.title, `${problem.detail}.`, wait ? 'Try again' : '', compare);
  if (!wait) return undefined;
  const until = performance.now() + wait * 1000;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    $('problem-action').disabled = left > 0;
    $('problem-action').textContent = left > 0 ? `Try again in ${left} s` : 'Try again';
    if (left <= 0) clearTimers();
  };
  tick();
  timers.push(setInterval(tick, 250));
  return undefined;
}

function complain(title, detail, action = '', act = null) {
  $('problem-title').textContent = title;
  $('problem-detail').textContent = detail;
  $('problem-shown').hidden = !compared;
  if (compared) $('problem-shown').textContent = `Below is still the last comparison, ${compared.photo.name} in ${number(compared.bytes)} bytes at most.`;
  Object.assign($('problem-action'), { hidden: !action, disabled: false, textContent: action, onclick: act });
  $('problem').hidden = false;
  $('problem').scrollIntoView({ block: 'nearest' });
}

// -- showing

const pictureOf = (name) => {
  if (name === 'original') return compared.photo.url;
  return name === 'preview' ? compared.reply.preview : compared.reply.codecs[name].picture ?? compared.reply.codecs[name].file;
};

const wordsOf = (name) => {
  if (name === 'original') return `Original, ${number(compared.photo.file.size)} bytes`;
  return name === 'preview' ? `Preview, ${compared.reply.preview.length} characters` : `${label(name)}, ${bytesOf(compared.reply.codecs[name])}`;
};

async function show(reply, bytes, mine) {
  const isNew = compared?.photo !== mine;
  compared = { reply, bytes, photo: mine };
  maps.clear();
  if (!mine.url && sides.left === 'original') sides.left = 'JPEG';
  $('result').hidden = false;
  fillSides();
  if (isNew) {
    viewer.resize(reply.width, reply.height);
    $('map').setAttribute('aria-pressed', 'false');
  }
  fillFigures($('figures'), reply);
  $('summary').textContent = summary(reply);
  const notes = [...reply.notes, ...(mine.url ? [] : ['This browser cannot show the original; the service can read it.'])];
  $('notes').replaceChildren(...notes.map((note) => Object.assign(document.createElement('li'), { textContent: note })));
  fillStages($('stages'), reply.stages);
  $('preview').src = reply.preview;
  $('preview-frame').style.background = reply.color;
  $('preview-words').textContent = `The preview: ${reply.preview.length} characters that come with the reply, to paint at once. Its colour is ${reply.color}.`;
  const { file } = reply.codecs.sdc;
  const name = `${mine.name.replace(/\.[^.]*$/, '')}.sdc`;
  Object.assign($('download'), { href: file, download: name, textContent: `Download ${name}, ${number(reply.codecs.sdc.bytes)} bytes` });
  $('sent').textContent = `${mine.scaled ? 'The photo was scaled down here before it was sent. ' : ''}With curl, the same file:`;
  $('curl').textContent = curlLine(location.origin, mine.name, bytes, Boolean(key));
  await showSides();
  if (isNew) $('stage').scrollIntoView({ block: 'nearest' });
}

function fillSides() {
  const names = ['original', ...Object.keys(compared.reply.codecs), 'preview'];
  for (const side of ['left', 'right']) {
    const options = names.map((name) => {
      const option = document.createElement('label'), radio = document.createElement('input');
      Object.assign(radio, { type: 'radio', name: side, value: name, checked: sides[side] === name, disabled: name === 'original' && !compared.photo.url });
      radio.addEventListener('change', () => { sides[side] = name; showSides(); });
      option.append(radio, name === 'original' ? 'Original' : name === 'preview' ? 'Preview' : label(name));
      return option;
    });
    $(`${side}-side`).replaceChildren($(`${side}-side`).querySelector('legend'), ...options);
  }
}

async function showSides() {
  for (const side of ['left', 'right']) {
    viewer.show(side, pictureOf(sides[side]), wordsOf(sides[side]));
  }
  for (const button of ['map', 'worst']) $(button).disabled = !compared.photo.url;
  const mapped = $('map').getAttribute('aria-pressed') === 'true' && Boolean(compared.photo.url);
  $('legend').hidden = !mapped;
  $('stage').classList.toggle('mapped', mapped);
  for (const [side, name] of Object.entries(sides)) {
    $(`${side}-badge`).textContent = `${mapped && name !== 'original' ? 'Difference of ' : ''}${wordsOf(name)}`;
  }
  if (!mapped) return;
  for (const side of ['left', 'right']) {
    const name = sides[side], canvas = viewer.canvas(side);
    canvas.hidden = name === 'original';
    canvas.parentElement.classList.toggle('compared', !canvas.hidden);
    if (!canvas.hidden) paint(canvas, await mapOf(name));
  }
}

function mapOf(name) {
  const { reply, photo: { url } } = compared;
  if (!maps.has(name)) maps.set(name, difference(url, pictureOf(name), reply.width, reply.height));
  return maps.get(name);
}

async function goToWorst() {
  const name = sides.right === 'original' ? sides.left : sides.right;
  if (name === 'original') return;
  const { worst } = await mapOf(name);
  viewer.goTo(worst.x, worst.y, 4);
  viewer.divide(0.5);
}

// -- what people do

const chosen = (files) => { const file = [...files][0]; if (file) choose(file, file.name || 'pasted.png'); };

$('file').addEventListener('change', (event) => { chosen(event.target.files); event.target.value = ''; });
addEventListener('paste', (event) => chosen(event.clipboardData.files));
addEventListener('dragover', (event) => { event.preventDefault(); $('drop').classList.add('over'); });
addEventListener('dragleave', (event) => { if (!event.relatedTarget) $('drop').classList.remove('over'); });
addEventListener('drop', (event) => { event.preventDefault(); $('drop').classList.remove('over'); chosen(event.dataTransfer.files); });
for (const button of document.querySelectorAll('[data-sample]')) {
  button.addEventListener('click', async () => {
    try {
      await choose(await (await fetch(`/page/samples/${button.dataset.sample}.jpg`)).blob(), `${button.dataset.sample}.jpg`);
    } catch (error) {
      complain('The service did not answer.', `The sample could not be fetched (${error.message}).`);
    }
  });
}
$('size').addEventListener('input', slid);
$('size').addEventListener('change', compareSoon);
$('bytes').addEventListener('change', () => { sizeChanged(); compareSoon(); });
$('cancel').addEventListener('click', cancel);
$('key-form').addEventListener('submit', (event) => { event.preventDefault(); key = $('key').value.trim(); compare(); });
$('zoom-in').addEventListener('click', () => viewer.enlarge(1.5));
$('zoom-out').addEventListener('click', () => viewer.enlarge(1 / 1.5));
$('zoom-fit').addEventListener('click', () => viewer.goTo(0.5, 0.5, 1));
$('map').addEventListener('click', () => { $('map').setAttribute('aria-pressed', String($('map').getAttribute('aria-pressed') !== 'true')); showSides(); });
$('worst').addEventListener('click', goToWorst);
$('copy').addEventListener('click', async () => {
  try {
    await navigator.clipboard.writeText($('curl').textContent);
    $('copied').textContent = 'Copied.';
  } catch {
    getSelection().selectAllChildren($('curl'));
    $('copied').textContent = 'Selected: copy it with your keyboard.';
  }
});
