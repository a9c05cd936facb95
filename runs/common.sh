# Sourced by the runs: where things are, and `run`, which trains several networks at a time and can be stopped and resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EDGE=${EDGE:-.venv/bin/edge}
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-build/runs}
PICTURES=${PICTURES:-docs/images}
# Runs at the same time, each on one core.
JOBS=${JOBS:-$(nproc)}
SEEDS=${SEEDS:-0 1 2}
mkdir -p "$OUT"
FIRST=${SEEDS%% *}
# Each run has a process group of its own (-m), so that it can be told to stop together with what it started.
set -m
trap 'for pid in $(jobs -rp); do kill -- "-$pid"; done 2> /dev/null; wait' EXIT

# texts NAME VOCABULARY SOURCE...: a tokenizer and token shards of texts from Debian packages, in $OUT/NAME, with a held-out part.
texts() {
    local name=$1 vocabulary=$2 source files=()
    shift 2
    [ ! -e "$OUT/$name/index.json" ] || return 0
    "$PYTHON" scripts/fetch_texts.py --out build/texts
    for source in "$@"; do files+=("build/texts/$source.jsonl"); done
    [ -e "$OUT/$name-tokenizer" ] || "$EDGE" train tokenizer "${files[@]}" --vocabulary "$vocabulary" \
        --sample 20 --out "$OUT/$name-tokenizer"
    "$EDGE" train tokenize "${files[@]}" --tokenizer "$OUT/$name-tokenizer" --out "$OUT/$name" --holdout 0.02 \
        --workers "$JOBS"
}

# run NAME CONFIG [--set KEY=VALUE]...: train $OUT/NAME in the background, at most $JOBS of them at a time. What is trained
# already stays; a run that diverged is a result too.
PIDS=()
run() {
    local name=$1
    [ ! -e "$OUT/$name/model" ] && [ ! -e "$OUT/$name/diverged" ] || return 0
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n || true; done  # done_all asks each how it ended
    mkdir -p "$(dirname "$OUT/$name")"
    echo "$(date +%T) $name" >&2
    train "$@" &
    PIDS+=($!)
}

train() {
    local name=$1 config=$2
    shift 2
    "$EDGE" train run "$config" --out "$OUT/$name" "$@" > "$OUT/$name.out" 2>&1 && return
    if grep -q "is no number" "$OUT/$name.out"; then
        touch "$OUT/$name/diverged"
    else
        echo "$name did not end; see $OUT/$name.out" >&2
        exit 1
    fi
}

# Wait for all runs, whose results the next ones need.
done_all() {
    local pid failed=0
    for pid in "${PIDS[@]}"; do wait "$pid" || failed=1; done
    PIDS=()
    [ $failed = 0 ] || exit 1
}

# finish NAME [RUN]...: a picture of some runs, and the comparison's document as the last line.
finish() {
    local name=$1
    shift
    [ $# = 0 ] || "$EDGE" train plot "${@/#/$OUT/}" --average 4 --out "$PICTURES/training-$name.png"
    "$PYTHON" runs/summary.py "$name" --runs "$OUT"
}

PROSE="austen bible handbook reference policy git jargon postgresql python foldoc"
