#!/usr/bin/env bash
# BitCPM in miniature: high precision first, then quantization-aware training on a share of the tokens (figure 5 of the
# MiniCPM4 report), with the learning rate warmed up again and without, groups of 32 against whole rows.
source "$(dirname "$0")/common.sh"
texts texts-1k 1024 $PROSE

STEPS=1500
SECOND=0.005  # the learning rate of the second stage, half the first one's
at() { awk -v n="$STEPS" -v share="$1" 'BEGIN { print int(n * (1 - share) + 0.5) }'; }
for seed in $SEEDS; do
    run "ternary/float-$seed" runs/small.toml --set seed="$seed" --set schedule.steps=$STEPS
    run "ternary/stable-$seed" runs/small.toml --set seed="$seed" --set schedule.kind=constant \
        --set schedule.steps="$(at 0.2)" --set checkpoints.keep_at="[$(at 0.6),$(at 0.4),$(at 0.2)]"
    for group in g32 row; do
        run "ternary/scratch-$group-$seed" runs/small.toml --set seed="$seed" --set schedule.steps=$STEPS \
            --set quantization.scheme="ternary-$group"
    done
done
done_all
for seed in $SEEDS; do
    qat() {  # qat NAME SHARE [--set ...]: from the stable run's checkpoint, on the rest of the tokens
        local from
        from=$(printf '%s/ternary/stable-%s/checkpoints/step-%08d' "$OUT" "$seed" "$(at "$2")")
        run "ternary/$1-$seed" runs/small.toml --set seed="$((seed + 100))" --set schedule.steps=$((STEPS - $(at "$2"))) \
            --set start.path="$from" --set quantization.scheme=ternary-g32 --set optimizer.learning_rate=$SECOND "${@:3}"
    }
    for share in 0.2 0.4 0.6; do qat "share-$share" "$share"; done
    qat row-0.4 0.4 --set quantization.scheme=ternary-row
    qat no-warm-up-0.4 0.4 --set schedule.warm_up=0
    # Rounded after training, without any: the share of 0.
    run "ternary/share-0-$seed" runs/small.toml --set seed="$seed" --set schedule.steps=1 --set schedule.warm_up=0 \
        --set schedule.kind=constant --set optimizer.learning_rate=0.0 --set optimizer.weight_decay=0.0 \
        --set start.path="$OUT/ternary/float-$seed" --set quantization.scheme=ternary-g32
done
done_all
finish ternary "ternary/float-$FIRST" "ternary/share-0.4-$FIRST" "ternary/no-warm-up-0.4-$FIRST" "ternary/scratch-g32-$FIRST"
