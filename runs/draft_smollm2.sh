#!/usr/bin/env bash
# Drafts of the built-in model, from its own answers: EAGLE-2 in floats, then trained for 4 bits, and other kinds with as many steps
# beside a short EAGLE-2. QUESTIONS names files of JSON lines with further prompts (`question`, or `instruction` and `input`).
source "$(dirname "$0")/common.sh"

MODEL=${MODEL:-smollm2-135m}
PROMPTS=${PROMPTS:-3600}
STEPS=${STEPS:-1200} SHORT=${SHORT:-200} ROUNDED=${ROUNDED:-100}
QUESTIONS=${QUESTIONS:-}
FOLDER=$OUT/draft
mkdir -p "$FOLDER"
[ -e build/texts/sources.json ] || "$PYTHON" scripts/fetch_texts.py --out build/texts
[ -e "$FOLDER/asked.jsonl" ] || "$PYTHON" runs/draft_prompts.py "$PROMPTS" 0 "$FOLDER/asked.jsonl" $QUESTIONS
[ -e "$FOLDER/held_out.jsonl" ] || "$PYTHON" runs/draft_prompts.py 200 7 "$FOLDER/held_out.jsonl"

# answers KIND NAME OPTION...: the model's answers with what a draft of the kind reads, once for training and once held out.
answers() {
    local kind=$1 name=$2 part
    for part in asked held_out; do
        local out=$FOLDER/$name first=$FOLDER/answers
        [ $part = asked ] || out+=-held-out first+=-held-out
        [ ! -e "$out/index.json" ] || continue
        if [ "$name" = answers ]; then
            "$EDGE" train answers "$MODEL" "$FOLDER/$part.jsonl" --context 1024 --field prompt --out "$out"
        else
            "$EDGE" train answers "$MODEL" --context 1024 --of "$first" --kind "$kind" --out "$out"
        fi
    done
}

# draft NAME KIND ANSWERS STEPS [--set KEY=VALUE]...
draft() {
    local name=$1 kind=$2 from=$3 steps=$4
    shift 4
    [ -e "$FOLDER/$name/model" ] || "$EDGE" train draft "$MODEL" --kind "$kind" --answers "$FOLDER/$from" \
        --held-out "$FOLDER/$from-held-out" --out "$FOLDER/$name" --set schedule.steps="$steps" --set evaluation.every=100 "$@"
}

answers eagle2 answers
draft eagle2 eagle2 answers "$STEPS"
draft eagle2-int4 eagle2 answers "$ROUNDED" --set start.path="$FOLDER/eagle2" --set quantization.scheme=int4-g32 \
    --set optimizer.muon_learning_rate=0.004 --set optimizer.learning_rate=2e-4
draft short eagle2 answers "$SHORT"
for kind in eagle3 mtp; do
    answers $kind answers-$kind
    draft $kind $kind answers-$kind "$SHORT"
done
draft bita bita answers "${SOFT:-60}" --set data.rows=8 --set schedule.warm_up=6
