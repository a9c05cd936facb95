#!/usr/bin/env bash
# Multi-token prediction: the main loss with the layer for the token after next and without, and how often it guesses right.
source "$(dirname "$0")/common.sh"
texts texts-1k 1024 $PROSE

for seed in $SEEDS; do
    for weight in 0.0 0.1 0.3; do
        run "multi-token/$weight-$seed" runs/small.toml --set seed="$seed" --set loss.multi_token="$weight"
    done
done
done_all
for seed in $SEEDS; do
    for weight in 0.1 0.3; do
        [ -s "$OUT/multi-token/$weight-$seed/acceptance.json" ] || "$PYTHON" runs/acceptance.py "$OUT/multi-token/$weight-$seed" "$OUT/texts-1k-heldout" \
            > "$OUT/multi-token/$weight-$seed/acceptance.json"
    done
done
finish multi-token "multi-token/0.0-$FIRST" "multi-token/0.1-$FIRST" "multi-token/0.3-$FIRST"
