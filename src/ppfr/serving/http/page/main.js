// The page: photo, crop and payload side by side, and three requests to the server.

import { align } from "./align.js";
import { Client } from "./client.js";
import { area, detect } from "./detect.js";
import { fromFile, fromVideo, startCamera, stopCamera } from "./photo.js";
import { fitCrop } from "./pixels.js";
import { openNetwork } from "./runtime.js";
import { Refused, enrol, read, recognise, requestName, verify } from "./server.js";
import { showBytes, showPayload, showPicture } from "./show.js";

const MOST_NAMED = 5;
const element = (id) => document.getElementById(id);
const [ASK, STATUS, ALERT, ANSWER] = [["recognise", "enrol", "verify"], "status", "alert", "answer"];

const settings = (await read("config.json")).json();
let crop = null;
let ready = null;

// --- the deployment ---------------------------------------------------------------------------------------------
/** The client; its secrets come from the server (with the API key) or from the user's file. */
async function openClient() {
  const { secrets } = await settings;
  const parts = ["contract.json", "protect.json", "protect.onnx"].map((name) => read(`client/${name}`));
  const held = secrets === "none" ? null : await readSecrets(secrets);
  const [contract, graph, network] = await Promise.all(parts);
  return Client.open(await contract.json(), await graph.json(), await network.arrayBuffer(), held);
}

async function readSecrets(place) {
  if (place === "served") {
    if (!element("key").value) throw new Error("enter the API key: with it the server hands out this client's secrets");
    return (await read("client/secrets.safetensors", element("key").value)).arrayBuffer();
  }
  const [file] = element("secrets").files;
  if (!file) throw new Error("choose the file with this client's secrets");
  return file.arrayBuffer();
}

async function openDetector() {
  return openNetwork(await (await read("detector.onnx")).arrayBuffer());
}

/** A function that opens something once, and again only after a failure. */
function once(open) {
  let held = null;
  return async () => (held ??= await open());
}

let client = once(openClient);
const detector = once(openDetector);

// --- photo to message -------------------------------------------------------------------------------------------
async function take(picture) {
  forget();
  showPicture(element("picture"), picture);
  let face = picture;
  if (!element("aligned").checked) {
    say("Looking for a face ...");
    const faces = await detect(await detector(), picture);
    if (!faces.length) throw new Error("no face was found in this photo");
    const largest = faces.reduce((one, other) => (area(other.box) > area(one.box) ? other : one));
    face = align(picture, largest.landmarks);
  }
  crop = face;
  await protect();
}

/** Make a message of the crop, with fresh draws. */
async function protect() {
  if (!crop) return;
  say("Protecting ...");
  const opened = await client();
  const fitted = fitCrop(crop, opened.size);
  showPicture(element("crop"), fitted);
  const { tensors, message } = await opened.protect(fitted);
  const note = showPayload(element("payload"), tensors);
  element("payload-note").textContent = `${note}; ${message.length.toLocaleString("en")} bytes as ${codingOf(opened)}`;
  showBytes(element("bytes"), message);
  ready = { message, name: requestName() };
  setAsking(true);
  say("Ready: the next request sends what is shown under “Is sent”. Nothing has been sent yet.");
}

/** The coding of messages, with the contract's where that is another one. */
function codingOf({ coding, contract }) {
  return coding === contract.coding ? coding : `${coding} (not ${contract.coding}, which this page cannot compute)`;
}

function forget() {
  crop = ready = null;
  setAsking(false);
  for (const id of ["picture", "crop", "payload"]) element(id).width = element(id).height = 0;
  element("bytes").textContent = element(ANSWER).textContent = "";
  element("payload-note").textContent = "Nothing yet";
}

// --- questions --------------------------------------------------------------------------------------------------
/** Send the message that is shown. Once the server has answered, a new one is made; without an answer it is kept. */
async function ask(question) {
  const key = element("key").value;
  if (!key) throw new Error("enter an API key first");
  const { message, name } = ready;
  setAsking(false);
  element(ANSWER).textContent = "";
  try {
    element(ANSWER).replaceChildren(...(await question(key, message, name)));
    ready = null;
  } catch (error) {
    if (error instanceof Refused) ready = null;
    throw error;
  } finally {
    if (ready) setAsking(true);
    else await protect();
  }
}

const QUESTIONS = {
  recognise: async (key, message) => {
    const found = await recognise(key, message, MOST_NAMED);
    if (!found.length) return [paragraph("Nobody is enrolled yet.")];
    const list = document.createElement("ol");
    list.append(...found.map(({ subject, similarity }) => likeness(subject, similarity, "li")));
    return [list];
  },
  enrol: async (key, message, name) => {
    const { subject } = await enrol(key, message, element("subject").value, name);
    return [paragraph(`${subject} is enrolled.`)];
  },
  verify: async (key, message) => {
    const { subject, similarity } = await verify(key, message, element("subject").value);
    return [likeness(subject, similarity, "p")];
  },
};

function paragraph(text) {
  const made = document.createElement("p");
  made.textContent = text;
  return made;
}

function likeness(subject, similarity, kind) {
  const made = document.createElement(kind);
  const bar = document.createElement("meter");
  bar.min = 0;
  bar.max = 1;
  bar.value = Math.max(similarity, 0);
  bar.textContent = similarity.toFixed(3);
  made.append(`${subject}: cosine ${similarity.toFixed(3)} `, bar);
  return made;
}

// --- the page ---------------------------------------------------------------------------------------------------
function say(text) {
  element(STATUS).textContent = text;
}

function setAsking(possible) {
  for (const id of ASK) element(id).disabled = !possible;
}

let working = Promise.resolve();

/** Run tasks one after the other, and show their errors. */
function doing(task) {
  working = working.then(async () => {
    element(ALERT).textContent = "";
    document.body.setAttribute("aria-busy", "true");
    try {
      await task();
    } catch (error) {
      say("");
      element(ALERT).textContent = error.message;
    } finally {
      document.body.removeAttribute("aria-busy");
    }
  });
  return working;
}

element("photo").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (!file) return;
  doing(async () => {
    // a photo that cannot be read must not leave an earlier one to be asked about
    forget();
    await take(await fromFile(file));
  });
});
element("camera").addEventListener("click", () =>
  doing(async () => {
    await startCamera(element("video"));
    element("viewfinder").hidden = false;
    element("shoot").focus();
  }),
);
element("shoot").addEventListener("click", () =>
  doing(async () => {
    const picture = fromVideo(element("video"));
    closeCamera();
    await take(picture);
  }),
);
element("stop").addEventListener("click", closeCamera);
element("recognise").addEventListener("click", () => doing(() => ask(QUESTIONS.recognise)));
element("named").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = QUESTIONS[event.submitter?.value ?? "enrol"];
  doing(() => ask(question));
});
element("setup").addEventListener("submit", (event) => event.preventDefault());
element("key").addEventListener("change", () => {
  // a photo may wait for its client
  if (crop && !ready) doing(protect);
});
element("secrets").addEventListener("change", () => {
  client = once(openClient);
  doing(protect);
});

function closeCamera() {
  stopCamera(element("video"));
  element("viewfinder").hidden = true;
}

const { detector: detects, secrets, warning } = await settings;
element("warning").hidden = !warning;
if (warning) element("warning").textContent = `Warning: ${warning}.`;
element("secrets-row").hidden = secrets !== "asked";
if (!detects) {
  element("aligned").checked = element("aligned").disabled = true;
  say("Choose an aligned crop of a face to begin; this server gives no detector.");
}
document.body.dataset.ready = "true";
