#!/usr/bin/env bash
# The benchmarks that train on CIFAR-10, side by side on one GPU, each in a process of its own; what is not finished in
# time is stopped. Schedules are short, of 5 to 40 epochs, to fit into ten minutes; EPOCHS=4 makes them four times as
# long. Logs and figures are left in OUT.
#
#   bash benchmarks/on_gpu.sh cifar10.npz WEIGHTS TABLES OUT [SECONDS] [PROCESSES]
#
# WEIGHTS holds resnet20.safetensors, resnet20_dense.safetensors and resnet56.safetensors, TABLES
# resnet20_cifar10_36_configurations.csv and nats_ss_cifar10_accuracy.csv, each directly in it. Folders OUT/starts/* are
# bundles of a pruned ResNet-56, each of which is fine-tuned as well.
set -euo pipefail
here=$(dirname "$0")
data=$1 weights=$2 tables=$3 out=$4 seconds=${5:-540} processes=${6:-14}
times=${EPOCHS:-1}
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
mkdir -p "$out"
end=$((SECONDS + seconds))

job() { # NAME SCRIPT ARGUMENTS...: started as soon as a place is free
    local name=$1 script=$2 left
    shift 2
    while [ "$(jobs -rp | wc -l)" -ge "$processes" ]; do wait -n || true; done
    left=$((end - SECONDS))
    [ "$left" -gt 0 ] || return 0
    (
        code=0
        timeout "$left" python3 "$here/$script" "$@" --device cuda > "$out/$name.log" 2>&1 || code=$?
        echo "$name: exit code $code after $SECONDS s" | tee -a "$out/ended"
    ) &
}

# Alone, since these measure time.
python3 "$here/train_step.py" --device cuda --model builtin:cifar_resnet44 --precision bf16 --channels-last \
    --images 6400 --rounds 5 | tee "$out/train_step.log"
python3 "$here/supernet_devices.py" --device cuda --updates 20 | tee "$out/supernet_devices.log"

for seed in 0 1; do
    for models in 4 2 1; do
        job "pooling-$models-$seed" pooling_supernets.py "$data" "$tables/resnet20_cifar10_36_configurations.csv" \
            --out "$out/pooling-$models-$seed" --models $models --seeds $seed --epochs $((40 * times)) --judged 2000
    done
done
job tas tas_resnet56.py "$data" "$weights/resnet56.safetensors" --out "$out/tas" --search-epochs $((12 * times)) \
    --epochs $((12 * times))
job sorted sorted_family.py "$data" --out "$out/sorted" --epochs $((15 * times)) --sort-epochs $((15 * times))
job bossnas bossnas_nats.py "$data" "$tables/nats_ss_cifar10_accuracy.csv" --epochs $((5 * times)) --limit 8000 \
    --scored 300 --out "$out/bossnas"
for start in "$out"/starts/*; do
    [ -d "$start" ] || continue
    name=$(basename "$start")
    job "tune-$name" recovery.py "$data" "$weights" --out "$out/tune-$name" --study pruned --start "$start" \
        --epochs $((10 * times)) --only kd --set finetune.lr=0.01
done
job recovery-none recovery.py "$data" "$weights" --out "$out/recovery" --study pruned --epochs $((10 * times)) \
    --seeds 0 --only none
until [ -f "$out/recovery/pruned/start/report.json" ] || [ $SECONDS -ge $end ]; do sleep 1; done
for seed in 0 1; do
    for arm in none kd dkd meal_v2 feature kd+feature; do
        [ "$seed$arm" != 0none ] || continue
        job "recovery-$arm-$seed" recovery.py "$data" "$weights" --out "$out/recovery" --study pruned \
            --start "$out/recovery/pruned/start" --epochs $((10 * times)) --seeds $seed --only $arm
    done
    for arm in none kd meal_v2 meal_v2-off; do
        job "meal_v2-$arm-$seed" recovery.py "$data" "$weights" --out "$out/meal_v2" --study meal_v2 \
            --epochs $((20 * times)) --seeds $seed --only $arm
    done
done
job search supernet_search.py "$data" --out "$out/search" --epochs $((15 * times)) --train-epochs $((15 * times))
for way in new random; do
    job "n2n-$way" n2n.py --recipe n2n_resnet18_cifar10.yaml --trials 60 --seeds 1 --only $way --out "$out/n2n-$way" \
        --set "data.path=$data" --set data.limit_train=4000 --set data.limit_test=1000 \
        --set search.evaluator.teacher_train.epochs=$((12 * times)) --set search.evaluator.train.epochs=$((2 * times))
done
wait
