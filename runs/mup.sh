#!/usr/bin/env bash
# The best learning rate by width, with muP and without: a grid of factors of 2 at widths 64, 128 and 256.
source "$(dirname "$0")/common.sh"
texts texts-1k 1024 $PROSE

WIDTHS=${WIDTHS:-64 128 256}
RATES=${RATES:-0.00125 0.0025 0.005 0.01 0.02 0.04 0.08}
for seed in $SEEDS; do
    for width in $WIDTHS; do
        for mup in true false; do
            # Without muP the logits have no factor by width either; at width 64 both are the same network.
            base=64
            [ $mup = true ] || base=$width
            for rate in $RATES; do
                run "mup/$mup-$width-$rate-$seed" runs/small.toml --set seed="$seed" --set model.hidden_size="$width" \
                    --set model.intermediate_size=$((width * 5 / 2)) --set model.num_attention_heads=$((width / 32)) \
                    --set model.dim_model_base="$base" --set optimizer.mup="$mup" --set optimizer.base_width=64 --set optimizer.learning_rate="$rate" \
                    --set schedule.steps=300 --set schedule.warm_up=30
            done
        done
    done
done
done_all
finish mup
