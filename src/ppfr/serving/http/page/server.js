// Requests to the server: the deployment's public files, and messages.

/** An error that the server answered with. */
export class Refused extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

async function checked(answer) {
  if (answer.ok) return answer;
  let reason = answer.statusText;
  try {
    reason = (await answer.json()).message;
  } catch {
    // a proxy's answer is no JSON
  }
  throw new Refused(answer.status, `the server refused with ${answer.status}: ${reason}`);
}

/** Fetch a file of the page. */
export async function read(path, key) {
  return checked(await fetch(`page/${path}`, { headers: key ? { "x-api-key": key } : {} }));
}

/** A new idempotency key: repeating a request with it enrols nothing twice. */
export function requestName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function send(path, key, message, headers = {}) {
  const answer = await fetch(`api/v1/recognition/${path}`, {
    method: "POST",
    headers: { "x-api-key": key, "content-type": "application/octet-stream", ...headers },
    body: message,
  });
  return (await checked(answer)).json();
}

export function enrol(key, message, subject, name) {
  return send(`faces?subject=${encodeURIComponent(subject)}`, key, message, { "Idempotency-Key": name });
}

export async function recognise(key, message, limit) {
  return (await send(`recognize?limit=${limit}`, key, message)).result[0].subjects;
}

export async function verify(key, message, subject) {
  return (await send(`subjects/${encodeURIComponent(subject)}/verify`, key, message)).result[0];
}
