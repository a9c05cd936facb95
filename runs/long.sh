#!/usr/bin/env bash
# The long-context stage in miniature: a network learns to recall facts from 256 tokens with dense attention, then from up to 4096
# with sparse attention, LongRoPE and buckets; a needle at 16 times the short length, sparse against dense, before and after.
source "$(dirname "$0")/common.sh"
[ -e "$OUT/needle-texts/long/index.json" ] || "$PYTHON" runs/needle.py texts "$OUT/needle-texts"

ones=$(printf '1.0, %.0s' $(seq 32)) fours=$(printf '4.0, %.0s' $(seq 32))
for seed in $SEEDS; do run "long/short-$seed" runs/needle.toml --set seed="$seed"; done
done_all
for seed in $SEEDS; do
    for kind in sparse dense; do
        run "long/$kind-$seed" runs/needle.toml --set seed="$seed" --set start.path="$OUT/long/short-$seed" \
            --set data.sources.needle="$OUT/needle-texts/long" --set data.length=4096 --set data.rows=1 \
            --set data.buckets="[512, 1024, 2048, 4096]" --set attention.kind=$kind --set optimizer.learning_rate=0.002 \
            --set model.rope.type=longrope --set model.rope.theta=1e12 --set model.rope.original_max_position_embeddings=256 \
            --set model.rope.short_factor="[${ones%, }]" --set model.rope.long_factor="[${fours%, }]" --set schedule.steps=150
    done
done
done_all
for seed in $SEEDS; do
    for name in short sparse dense; do
        found=$OUT/long/$name-$seed
        [ -s "$found/score.json" ] || "$PYTHON" runs/needle.py score "$found/model" > "$found/score.json"
    done
done
finish long
