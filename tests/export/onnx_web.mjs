// Runs an exported model in onnxruntime-web: node onnx_web.mjs FOLDER_OF_NODE_MODULES FOLDER TOKENS_AS_JSON
// Prints the logits after the last token as JSON: from one pass; with the last token in a pass of its own; and in small
// pieces after a rollback to a third of the tokens and another sequence.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

import { Decoder } from "../../examples/browser/decoder.mjs";

const [modules, folder, given] = process.argv.slice(2);
const ort = createRequire(path.join(modules, "package.json"))("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const read = (name) => fs.readFileSync(path.join(folder, name));
const config = JSON.parse(read("genai_config.json"));
const decoder = await Decoder.open(ort, { model: read("model.onnx"), data: read("model.onnx.data"), config });

const tokens = JSON.parse(given);
const third = Math.floor(tokens.length / 3);
const found = [Array.from(await decoder.run(tokens))];
decoder.keep(0);
await decoder.run(tokens.slice(0, -1));
found.push(Array.from(await decoder.run(tokens.slice(-1))));
await decoder.prefill([...tokens.slice(0, third), 3, 3, 3], () => true);
const asked = [];
found.push(Array.from(await decoder.prefill(tokens, (done, all) => asked.push([done, all]), 4)));
console.log(JSON.stringify({ found, asked }));
