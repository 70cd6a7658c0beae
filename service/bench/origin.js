// Closed-loop load for `sdc bench origin`: so many clients on kept connections, each asking again at once.
// Environment: URL, TAG (empty: no condition), EXPECTED, CLIENTS, SECONDS, OUT.
import http from 'k6/http';
import { Counter } from 'k6/metrics';

const headers = __ENV.TAG ? { 'If-None-Match': __ENV.TAG } : {};
const expected = Number(__ENV.EXPECTED);

export const options = { vus: Number(__ENV.CLIENTS), duration: `${__ENV.SECONDS}s`, discardResponseBodies: true };

const unexpected = new Counter('unexpected');

export default function () {
  if (http.get(__ENV.URL, { headers }).status !== expected) unexpected.add(1);
}

export function handleSummary(data) {
  const wrong = data.metrics.unexpected ? data.metrics.unexpected.values.count : 0;
  return { [__ENV.OUT]: JSON.stringify({ rate: data.metrics.http_reqs.values.rate, unexpected: wrong }) };
}
