#!/usr/bin/env bash
# Drafts of the built-in model, from its own answers: EAGLE-2 in floats, then trained for 4 bits, and every kind with few steps on few
# answers. QUESTIONS names files of JSON lines with further prompts (`question`, or `instruction` and `input`).
source "$(dirname "$0")/common.sh"

MODEL=${MODEL:-smollm2-135m}
PROMPTS=${PROMPTS:-6000}
STEPS=${STEPS:-1200} SHORT=${SHORT:-200} ROUNDED=${ROUNDED:-100}
FEW=${FEW:-1500}
QUESTIONS=${QUESTIONS:-}
FOLDER=$OUT/draft
mkdir -p "$FOLDER"
[ -e build/texts/sources.json ] || "$PYTHON" scripts/fetch_texts.py --out build/texts
[ -e "$FOLDER/asked.jsonl" ] || "$PYTHON" runs/draft_prompts.py "$PROMPTS" 0 "$FOLDER/asked.jsonl" $QUESTIONS
[ -e "$FOLDER/held_out.jsonl" ] || "$PYTHON" runs/draft_prompts.py 240 7 "$FOLDER/held_out.jsonl" --without "$FOLDER/asked.jsonl"

# answers NAME [OPTION]...: the model's answers to the prompts, or with options those answers read again, once for training and
# once held out, with what a draft reads.
answers() {
    local name=$1 part
    shift
    for part in asked held_out; do
        local out=$FOLDER/$name first=$FOLDER/answers
        [ $part = asked ] || out+=-held-out first+=-held-out
        [ ! -e "$out/index.json" ] || continue
        if [ "$#" = 0 ]; then
            "$EDGE" train answers "$MODEL" "$FOLDER/$part.jsonl" --context 1024 --field prompt --out "$out"
        else
            "$EDGE" train answers "$MODEL" --context 1024 --of "$first" "$@" --out "$out"
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

answers answers
draft eagle2 eagle2 answers "$STEPS"
draft eagle2-int4 eagle2 answers "$ROUNDED" --set start.path="$FOLDER/eagle2" --set quantization.scheme=int4-g32 \
    --set optimizer.muon_learning_rate=0.004 --set optimizer.learning_rate=2e-4

for kind in eagle2 eagle3 mtp dspark; do
    answers few-$kind --kind $kind --first "$FEW"
    draft short-$kind $kind few-$kind "$SHORT"
done
draft bita bita few-eagle2 "${SOFT:-60}" --set data.rows=8 --set schedule.warm_up=6
