// The words and tables beside the pictures.  Knows nothing of how a comparison came to be.

export const number = (value, digits = 0) => value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
const element = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text, ...properties });

const FIGURES = [
  ['PSNR, dB', 'psnr', 2, 'higher'], ['MS-SSIM', 'ms_ssim', 3, 'higher'], ['SSIMULACRA2', 'ssimulacra2', 1, 'higher'],
  ['Feature distance', 'feature', 3, 'lower'],
];

export const label = (name) => (name === 'sdc' ? '.sdc' : name);

export function bytesOf(entry) {
  return `${number(entry.bytes)} bytes${entry.smallest ? ', the smallest it can' : ''}`;
}

export function fillFigures(table, { codecs, width, height }) {
  const names = Object.keys(codecs), body = element('tbody', '');
  const row = (title, cells) => {
    const line = element('tr', '');
    line.append(element('th', title, { scope: 'row' }), ...cells);
    body.append(line);
  };
  row('Bytes', names.map((name) => {
    const cell = element('td', number(codecs[name].bytes));
    if (codecs[name].smallest) cell.append(element('small', 'smallest it can'));
    return cell;
  }));
  row('Bits per pixel', names.map((name) => element('td', number((8 * codecs[name].bytes) / (width * height), 3))));
  for (const [title, key, digits, better] of FIGURES) {
    const values = names.map((name) => codecs[name].figures[key]);
    const best = values.includes(null) ? null : Math[better === 'higher' ? 'max' : 'min'](...values);
    const cells = values.map((value) => element('td', value === null ? 'not measured' : number(value, digits), value === best && value !== null ? { className: 'best', title: 'best of the four' } : {}));
    row(`${title}, ${better} is better`, cells);
  }
  row('Milliseconds to make it', names.map((name) => element('td', number(codecs[name].encode_ms))));
  row('Milliseconds to show it', names.map((name) => element('td', number(codecs[name].decode_ms))));
  const head = element('tr', '');
  head.append(element('td', ''), ...names.map((name) => element('th', label(name), { scope: 'col' })));
  const header = element('thead', '');
  header.append(head);
  table.replaceChildren(header, body);
}

// Which of its rivals ours beats, and by what; said of both sides.
export function summary({ codecs }) {
  const rivals = Object.keys(codecs).filter((name) => name !== 'sdc');
  const said = FIGURES.filter(([, key]) => codecs.sdc.figures[key] !== null).map(([title, key, , better]) => {
    const sign = better === 'higher' ? 1 : -1;
    const ahead = rivals.filter((name) => sign * (codecs[name].figures[key] - codecs.sdc.figures[key]) > 0);
    return `${title.split(',')[0]}: ${ahead.length ? `${ahead.join(' and ')} ${ahead.length > 1 ? 'are' : 'is'} nearer than .sdc` : '.sdc is nearest'}`;
  });
  return `${said.join('. ')}. Times are of this server as loaded as it is; a rival's is for the one file, without the search for its quality.`;
}

export function fillStages(box, stages) {
  const longest = Math.max(...Object.values(stages).flatMap((each) => Object.values(each)));
  box.replaceChildren(...Object.entries(stages).map(([journey, times]) => {
    const bars = element('div', '', { className: 'bars' });
    const total = Object.values(times).reduce((sum, each) => sum + each, 0);
    bars.append(element('h3', `${journey === 'compress' ? 'Photo to .sdc' : '.sdc to PNG'}: ${number(total)} ms`));
    for (const [stage, milliseconds] of Object.entries(times)) {
      const bar = element('i', '', { ariaHidden: 'true' });
      bar.style.width = `${(100 * milliseconds) / longest}%`;
      bars.append(element('span', stage), bar, element('span', `${number(milliseconds, 1)} ms`));
    }
    return bars;
  }));
}

const quoted = (text) => (/^[\w.,@/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

// The command that makes the same file; `named` is the photo's file name.
export function curlLine(origin, named, bytes, withKey) {
  const out = quoted(`${named.replace(/\.[^.]*$/, '').replaceAll('/', '_')}.sdc`);
  const key = withKey ? ' -H "Authorization: Bearer $SDC_KEY"' : '';
  return `curl --fail -sS -o ${out} -H "Accept: application/vnd.sdc"${key} --data-binary ${quoted(`@${named}`)} "${origin}/compress?max_bytes=${bytes}"`;
}
