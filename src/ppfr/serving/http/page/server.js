// What this page says to the server: the deployment's public files are read, and messages are sent.

/** A refusal that the server explained. */
export class Refused extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

async function told(answer) {
  if (answer.ok) return answer;
  let reason = answer.statusText;
  try {
    reason = (await answer.json()).message;
  } catch {
    // a proxy's answer is no JSON
  }
  throw new Refused(answer.status, `the server refused with ${answer.status}: ${reason}`);
}

/** Read a file of the page's folder. */
export async function read(path, key) {
  return told(await fetch(`page/${path}`, { headers: key ? { "x-api-key": key } : {} }));
}

/** A fresh name for a request, so that a repetition is known as one. */
export function requestName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function send(path, key, message, headers = {}) {
  const answer = await fetch(`api/v1/recognition/${path}`, {
    method: "POST",
    headers: { "x-api-key": key, "content-type": "application/octet-stream", ...headers },
    body: message,
  });
  return (await told(answer)).json();
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
