#!/usr/bin/env bash
# Warmup-stable-decay against cosine at equal tokens, decays of several lengths, and decays branched from one stable run.
source "$(dirname "$0")/common.sh"
texts texts-1k 1024 $PROSE

LENGTHS="400 800 1200"
SHARES="0.025 0.05 0.1 0.2"
steps() { awk -v n="$1" -v share="$2" 'BEGIN { print n - int(n * share + 0.5) }'; }

stable_points=$(for n in $LENGTHS; do steps "$n" 0.1; done; for share in $SHARES; do steps 1200 "$share"; done)
stable_points=$(echo $stable_points | tr ' ' '\n' | sort -nu | paste -sd,)
last=${stable_points##*,}
for seed in $SEEDS; do
    run "wsd/stable-$seed" runs/small.toml --set seed="$seed" --set schedule.kind=constant \
        --set schedule.steps="$last" --set checkpoints.keep_at="[$stable_points]"
    for n in $LENGTHS; do
        run "wsd/cosine-$n-$seed" runs/small.toml --set seed="$seed" --set schedule.kind=cosine --set schedule.steps="$n"
        # Another seed: with the same one, the branch below is the same run, bit for bit.
        run "wsd/scratch-$n-$seed" runs/small.toml --set seed="1$seed" --set schedule.steps="$n"
    done
done
done_all
for seed in $SEEDS; do
    branch() {
        local from
        from=$(printf '%s/wsd/stable-%s/checkpoints/step-%08d' "$OUT" "$seed" "$(steps "$2" "$3")")
        run "$1" runs/small.toml --set seed="$seed" --set schedule.steps="$2" --set schedule.decay="$3" \
            --set start.path="$from" --set start.what=everything "${@:4}"
    }
    for n in $LENGTHS; do branch "wsd/branch-$n-$seed" "$n" 0.1; done
    for share in 0.025 0.05 0.2; do branch "wsd/share-$share-$seed" 1200 "$share"; done
    for shape in linear 1-sqrt; do branch "wsd/shape-$shape-$seed" 1200 0.1 --set schedule.shape="$shape"; done
done
done_all
finish wsd "wsd/stable-$FIRST" "wsd/cosine-1200-$FIRST" "wsd/branch-400-$FIRST" "wsd/branch-800-$FIRST" "wsd/branch-1200-$FIRST"
