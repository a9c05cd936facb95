#!/usr/bin/env bash
# The best learning rate by width, with muP and without: a grid of factors of 2 at widths 64, 128 and 256.
source "$(dirname "$0")/common.sh"
texts texts-1k 1024 $PROSE

RATES=${RATES:-0.00125 0.0025 0.005 0.01 0.02 0.04 0.08}
# Both begin with standard deviations of 1 / sqrt(width) and 4 query heads to a KV head. Without muP the matrices' learning rate and
# the logits have no factor by width; at width 64 both are one network.
network() {  # network NAME WIDTH RATE SEED BASE
    run "mup/$1-$2-$3-$4" runs/small.toml --set seed="$4" --set model.hidden_size="$2" \
        --set model.intermediate_size=$(($2 * 5 / 2)) --set model.head_dim=16 --set model.num_attention_heads=$(($2 / 16)) \
        --set model.num_key_value_heads=$(($2 / 64)) --set model.dim_model_base="$5" --set optimizer.base_width="$5" \
        --set optimizer.init_std="$(awk -v n="$5" 'BEGIN { printf "%.6f", 1 / sqrt(n) }')" \
        --set optimizer.learning_rate="$3" --set schedule.steps=200 --set schedule.warm_up=20
}
for seed in $SEEDS; do
    for rate in $RATES; do
        network both 64 "$rate" "$seed" 64
        for width in 128 256; do
            network mup "$width" "$rate" "$seed" 64
            network plain "$width" "$rate" "$seed" "$width"
        done
    done
done
done_all
finish mup
