#!/usr/bin/env bash
# From text to a phone's artifact: a tokenizer, a network trained on English, trained on with ternary weights, exported to a
# bundle, ExecuTorch, ONNX and GGUF, each checked in its own runtime; perplexities of float, int4 and ternary side by side.
JOBS=1
source "$(dirname "$0")/common.sh"

TINY=$OUT/tiny-texts
SOURCES="austen bible handbook reference policy jargon foldoc python postgresql"
if [ ! -e "$TINY/austen/index.json" ]; then
    "$PYTHON" scripts/fetch_texts.py --out build/texts
    files=()
    for source in $SOURCES; do files+=("build/texts/$source.jsonl"); done
    [ -e "$OUT/tiny-tokenizer" ] || "$EDGE" train tokenizer "${files[@]}" --vocabulary 4096 --sample 20 --out "$OUT/tiny-tokenizer"
    for source in $SOURCES; do
        "$EDGE" train tokenize "build/texts/$source.jsonl" --tokenizer "$OUT/tiny-tokenizer" --out "$TINY/$source" --holdout 0.03
    done
fi

run tiny/float runs/tiny.toml
done_all
# The second stage has the last 40 % of the same number of tokens: rounded in every step, at half the learning rate.
run tiny/ternary runs/tiny.toml --set start.path="$OUT/tiny/float/checkpoints/step-00000600" --set schedule.steps=400 \
    --set schedule.decay=0.25 --set quantization.scheme=ternary-row --set optimizer.learning_rate=0.005 --set seed=1
done_all

FLOAT=$OUT/tiny/float/model TERNARY=$OUT/tiny/ternary/model
[ -e "$OUT/tiny/held-out.txt" ] || "$PYTHON" runs/held_out.py "$TINY/austen-heldout" "$TINY/jargon-heldout" > "$OUT/tiny/held-out.txt"
perplexity() { "$EDGE" eval perplexity "$1" --text "$OUT/tiny/held-out.txt" --window 512 --activations float32 --json --quantize "$2" | tail -1 > "$OUT/tiny/perplexity-$3.json"; }
perplexity "$FLOAT" source float
perplexity "$FLOAT" int4-g32 int4
perplexity "$FLOAT" int8 int8
perplexity "$TERNARY" ternary ternary

for target in bundle executorch onnx gguf; do
    [ -e "$OUT/tiny/$target" ] || "$EDGE" export "$TERNARY" --to "$target" --quantize ternary --context 1024 --out "$OUT/tiny/$target"
    "$EDGE" export --check "$OUT/tiny/$target" --json | tail -1 > "$OUT/tiny/check-$target.json"
done
printf 'Elizabeth was\n' | "$EDGE" chat "$OUT/tiny/bundle" --max-tokens 60 | tee "$OUT/tiny/chat.txt"
finish tiny tiny/float tiny/ternary
