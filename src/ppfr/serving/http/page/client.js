// The client of a deployment: a crop of a face in, a message out. This module sends nothing.

import { codingFor } from "./codings.js";
import { sample } from "./draws.js";
import { Tensor, openNetwork } from "./runtime.js";
import { message, readSafetensors } from "./wire.js";

/** Protects crops with the client's graph and secrets. */
export class Client {
  #graph;
  #network;
  #secrets;

  constructor(contract, graph, network, secrets) {
    const missing = Object.keys(graph.secrets).filter((name) => !Object.hasOwn(secrets, name));
    if (missing.length) throw new Error(`the secrets file lacks ${missing.join(", ")}; it is of another deployment`);
    this.contract = contract;
    this.coding = codingFor(contract.coding);
    this.#graph = graph;
    this.#network = network;
    this.#secrets = secrets;
  }

  /** `contract` and `graph` are contract.json and protect.json, the rest are bytes; `secrets` may be null. */
  static async open(contract, graph, network, secrets) {
    return new Client(contract, graph, await openNetwork(network), secrets ? readSafetensors(secrets) : {});
  }

  /** Side of the crops in pixels. */
  get size() {
    return this.contract.input_size[0];
  }

  /** The payload of a crop, { tensors, message }; draws are fresh unless they are given. */
  async protect(crop, draws = Object.fromEntries(this.#graph.draws.map((draw) => [draw.name, sample(draw)]))) {
    const inputs = { images: { dtype: "float32", shape: this.#graph.images, data: pixelValues(crop) }, ...draws };
    for (const name of Object.keys(this.#graph.secrets)) inputs[name] = this.#secrets[name];
    const feeds = Object.entries(inputs).map(([name, { dtype, data, shape }]) => [name, new Tensor(dtype, data, shape)]);
    const found = await this.#network.run(Object.fromEntries(feeds));
    const tensors = {};
    for (const [name, output] of Object.entries(this.#graph.outputs)) {
      tensors[name] = { shape: [...found[output].dims], data: found[output].data };
    }
    return { tensors, message: message(this.contract, tensors, this.coding) };
  }
}

/** RGB in [-1, 1], channels first. */
function pixelValues({ width, height, data }) {
  const count = width * height;
  const values = new Float32Array(3 * count);
  for (let pixel = 0; pixel < count; pixel++) {
    for (let colour = 0; colour < 3; colour++) {
      values[colour * count + pixel] = Math.fround(data[4 * pixel + colour] / 127.5) - 1;
    }
  }
  return values;
}
