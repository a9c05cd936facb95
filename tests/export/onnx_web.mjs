// Runs an exported model in onnxruntime-web: node onnx_web.mjs FOLDER_OF_NODE_MODULES FOLDER TOKENS_AS_JSON
// Prints the logits after the last token as JSON: first from one pass, then with the last token in a pass of its own.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [modules, folder, given] = process.argv.slice(2);
const ort = createRequire(path.join(modules, "package.json"))("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const config = JSON.parse(fs.readFileSync(path.join(folder, "genai_config.json"))).model;
const data = path.join(folder, "model.onnx.data");
const session = await ort.InferenceSession.create(fs.readFileSync(path.join(folder, "model.onnx")), {
  executionProviders: ["wasm"],
  externalData: [{ path: "model.onnx.data", data: fs.readFileSync(data) }],
});

const { num_hidden_layers: layers, num_key_value_heads: heads, head_size: size } = config.decoder;
const int64 = (values, shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);

async function run(tokens, past, length) {
  const feeds = {
    input_ids: int64(tokens, [1, tokens.length]),
    attention_mask: int64(Array(length + tokens.length).fill(1), [1, length + tokens.length]),
    ...past,
  };
  const results = await session.run(feeds);
  const present = {};
  for (const [name, tensor] of Object.entries(results))
    if (name.startsWith("present.")) present[name.replace("present", "past_key_values")] = tensor;
  return [Array.from(results.logits.data), present];
}

const empty = {};
for (let layer = 0; layer < layers; layer++)
  for (const part of ["key", "value"])
    empty[`past_key_values.${layer}.${part}`] = new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, size]);

const tokens = JSON.parse(given);
const [whole] = await run(tokens, empty, 0);
const [, cache] = await run(tokens.slice(0, -1), empty, 0);
const [stepped] = await run(tokens.slice(-1), cache, tokens.length - 1);
console.log(JSON.stringify([whole, stepped]));
