#!/usr/bin/env bash
# BitCPM in miniature: high precision first, then quantization-aware training on a share of the tokens (figure 5 of the
# MiniCPM4 report), with the learning rate warmed up again and without, groups of 32 against whole rows. All see the same number
# of tokens, and all but the one without a new warm-up decay over the same number of steps.
source "$(dirname "$0")/common.sh"
texts texts-1k 1024 $PROSE

STEPS=1500
DECAY=150
FIRST_RATE=0.005 SECOND_RATE=0.0025  # that of small.toml, and half of it
part() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.6f", a / b }'; }
at() { awk -v n="$STEPS" -v share="$1" 'BEGIN { print int(n * (1 - share) + 0.5) }'; }
for seed in $SEEDS; do
    run "ternary/float-$seed" runs/small.toml --set seed="$seed" --set schedule.steps=$STEPS
    run "ternary/stable-$seed" runs/small.toml --set seed="$seed" --set schedule.kind=constant \
        --set schedule.steps="$(at 0.2)" --set checkpoints.keep_at="[$(at 0.6),$(at 0.4),$(at 0.2)]"
    run "ternary/decayed-0.4-$seed" runs/small.toml --set seed="$seed" --set schedule.steps="$(at 0.4)" \
        --set schedule.decay="$(part $DECAY "$(at 0.4)")"
    for group in g32 row; do
        run "ternary/scratch-$group-$seed" runs/small.toml --set seed="$seed" --set schedule.steps=$STEPS \
            --set quantization.scheme="ternary-$group"
    done
done
done_all
for seed in $SEEDS; do
    second() {  # second NAME SHARE CHECKPOINT [--set ...]: quantization-aware on the last SHARE of the tokens
        local steps=$((STEPS - $(at "$2")))
        run "ternary/$1-$seed" runs/small.toml --set seed="$((seed + 100))" --set schedule.steps=$steps \
            --set schedule.decay="$(part $DECAY $steps)" --set start.path="$OUT/ternary/$3" \
            --set quantization.scheme=ternary-g32 --set optimizer.learning_rate=$SECOND_RATE "${@:4}"
    }
    stable() { printf 'stable-%s/checkpoints/step-%08d' "$seed" "$(at "$1")"; }
    for share in 0.2 0.4 0.6; do second "share-$share" "$share" "$(stable "$share")"; done
    second row-0.4 0.4 "$(stable 0.4)" --set quantization.scheme=ternary-row
    # From a network that has decayed: warmed up again, or going on at the rate that the decay ended with.
    second warmed-0.4 0.4 "decayed-0.4-$seed"
    second not-warmed-0.4 0.4 "decayed-0.4-$seed" --set schedule.kind=constant --set schedule.warm_up=0 \
        --set optimizer.learning_rate="$(part $FIRST_RATE 10)"
    # Rounded after training, without any: the share of 0.
    run "ternary/share-0-$seed" runs/small.toml --set seed="$seed" --set schedule.steps=1 --set schedule.warm_up=0 \
        --set schedule.kind=constant --set optimizer.learning_rate=0.0 --set optimizer.weight_decay=0.0 \
        --set start.path="$OUT/ternary/float-$seed" --set quantization.scheme=ternary-g32
done
done_all
finish ternary "ternary/float-$FIRST" "ternary/share-0.4-$FIRST" "ternary/not-warmed-0.4-$FIRST" "ternary/scratch-g32-$FIRST"
