// Open-loop load for `sdc bench load`: requests leave at a constant rate, whether or not the last ones were answered.
// Environment: FOLDER with jobs.json and the files it names, BASE, RATE (per minute), SECONDS, DEADLINE_MS (0: none), SALT, OUT.
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter, Trend } from 'k6/metrics';

const jobs = JSON.parse(open(`${__ENV.FOLDER}/jobs.json`));
const files = jobs.map((job) => (job.file ? new Uint8Array(open(`${__ENV.FOLDER}/${job.file}`, 'b')) : null));
const deadline = Number(__ENV.DEADLINE_MS);
const headers = deadline ? { 'SDC-Deadline-Ms': String(deadline) } : {};

export const options = {
  scenarios: {
    load: {
      executor: 'constant-arrival-rate', rate: Number(__ENV.RATE), timeUnit: '1m', duration: `${__ENV.SECONDS}s`,
      preAllocatedVUs: 64, maxVUs: 512, gracefulStop: '120s',
    },
  },
  discardResponseBodies: true,
  summaryTrendStats: ['count', 'med', 'p(95)', 'p(99)', 'max'],
};

const accepted = new Trend('accepted_ms', true);
const refused = new Trend('refused_ms', true);
const failed = new Counter('failed');
const lawless = new Counter('refused_without_retry_after');
// One metric a second of the run and of the wait for its last replies: percentiles over time without a file of samples.
const seconds = Array.from({ length: Number(__ENV.SECONDS) + 120 }, (_, n) => n);
const acceptedIn = seconds.map((n) => new Trend(`accepted_in_second_${n}`, true));
const pixelsIn = seconds.map((n) => new Counter(`accepted_pixels_in_second_${n}`));
const refusedIn = seconds.map((n) => new Counter(`refused_in_second_${n}`));

export default function () {
  const n = exec.scenario.iterationInTest;
  const which = n % jobs.length;
  const url = __ENV.BASE + jobs[which].path;
  let reply;
  if (files[which]) {
    // Eight bytes behind the end of a JPEG make it another upload with the same picture: nothing is known already.
    const body = new Uint8Array(files[which].length + 8);
    body.set(files[which]);
    new DataView(body.buffer).setUint32(files[which].length, Number(__ENV.SALT));
    new DataView(body.buffer).setUint32(files[which].length + 4, n);
    reply = http.post(url, body.buffer, { headers, timeout: '120s' });
  } else {
    // Another quality is another render: identical ones would share a run.
    reply = http.get(`${url}?q=${50 + (Math.floor(n / jobs.length) % 30)}`, { headers, timeout: '120s' });
  }
  const second = Math.min(Math.floor((Date.now() - exec.scenario.startTime) / 1000), seconds.length - 1);
  if (reply.status === 200 || reply.status === 201) {
    accepted.add(reply.timings.duration);
    acceptedIn[second].add(reply.timings.duration);
    pixelsIn[second].add(jobs[which].pixels);
  } else if (reply.status === 503) {
    refused.add(reply.timings.duration);
    refusedIn[second].add(1);
    if (!/^[1-9][0-9]*$/.test(reply.headers['Retry-After'] || '')) lawless.add(1);
  } else {
    failed.add(1);
    console.error(`${reply.status} ${reply.error}`);
  }
}

export function handleSummary(data) {
  return { [__ENV.OUT]: JSON.stringify(Object.fromEntries(Object.entries(data.metrics).map(([name, metric]) => [name, metric.values]))) };
}
