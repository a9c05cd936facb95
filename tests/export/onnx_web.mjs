// Runs an exported model in onnxruntime-web: node onnx_web.mjs FOLDER_OF_NODE_MODULES FOLDER TOKENS_AS_JSON
// Prints the logits after the last token as JSON: first from one pass, then with the last token in a pass of its own.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

import { Decoder } from "../../docs/onnx-web/decoder.mjs";

const [modules, folder, given] = process.argv.slice(2);
const ort = createRequire(path.join(modules, "package.json"))("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const read = (name) => fs.readFileSync(path.join(folder, name));
const config = JSON.parse(read("genai_config.json"));
const decoder = await Decoder.open(ort, { model: read("model.onnx"), data: read("model.onnx.data"), config });

const tokens = JSON.parse(given);
const whole = Array.from(await decoder.run(tokens));
decoder.reset();
await decoder.run(tokens.slice(0, -1));
console.log(JSON.stringify([whole, Array.from(await decoder.run(tokens.slice(-1)))]));
