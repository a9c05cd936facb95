// A model of `edge export --to onnx --portable` in onnxruntime-web: one sequence, the likeliest token each time.

export class Decoder {
  // ort: the module onnxruntime-web. model, data: URLs, or the bytes, of model.onnx and model.onnx.data.
  // config: the content of genai_config.json.
  static async open(ort, { model, data, config }) {
    const session = await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"],
      externalData: [{ path: "model.onnx.data", data }],
    });
    return new Decoder(ort, session, config.model);
  }

  constructor(ort, session, config) {
    this.ort = ort;
    this.session = session;
    this.context = config.context_length;
    this.end = new Set(config.eos_token_id);
    const { num_hidden_layers: layers, num_key_value_heads: heads, head_size: size } = config.decoder;
    this.cache = { layers: [...Array(layers).keys()], shape: [1, heads, 0, size] };
    this.reset();
  }

  // Forgets the sequence: past keys and values of 0 rows.
  reset() {
    this.length = 0;
    this.past = {};
    for (const layer of this.cache.layers)
      for (const part of ["key", "value"])
        this.past[`past_key_values.${layer}.${part}`] = new this.ort.Tensor("float32", new Float32Array(0), this.cache.shape);
  }

  // Appends tokens to the sequence; the logits after the last one, as a Float32Array.
  async run(tokens) {
    const rows = this.length + tokens.length;
    if (rows > this.context) throw new Error(`The context of ${this.context} tokens is full.`);
    const int64 = (values) => new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const names = Object.keys(this.past);
    const present = (name) => name.replace("past_key_values", "present");
    const results = await this.session.run(
      { input_ids: int64(tokens), attention_mask: int64(Array(rows).fill(1)), ...this.past },
      ["logits", ...names.map(present)],
    );
    for (const name of names) this.past[name] = results[present(name)];
    this.length = rows;
    return results.logits.data;
  }

  // Up to `count` tokens after the given ones, as they are found; ends before an end token.
  async *greedy(tokens, count) {
    for (let made = 0; made < count; made++) {
      const logits = await this.run(tokens);
      const best = logits.reduce((found, value, token) => (value > logits[found] ? token : found), 0);
      if (this.end.has(best)) return;
      yield best;
      tokens = [best];
    }
  }
}
