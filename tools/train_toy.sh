#!/usr/bin/env bash
# One slice of training the built-in toy model on this machine's GPUs; call it again until it says that it is done.
#
#   tools/train_toy.sh RUN SECONDS [UNET_SECONDS [VAE_SECONDS]]
#
# RUN: a folder that is kept between slices. SECONDS: of this slice, set-up included. The two training times are those of
# all slices together and must not change between them. Logs go to RUN/*.log line by line, the result to RUN/export.
set -euo pipefail
began=$SECONDS
run=$1 slice=$2 unet=${3:-860} vae=${4:-90}
python=${PYTHON:-python3}
gpus=$(nvidia-smi --list-gpus | wc -l)
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=4
export MAX_JOBS=${MAX_JOBS:-$(nproc)} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$run/compiled}
mkdir -p "$run"
cd "$(dirname "$0")/.."

if [ ! -f "$run/prepared" ]; then
  "$python" -c 'from gsplat.cuda._backend import _C; assert _C is not None' >"$run/gsplat.log" 2>&1 &
  rasteriser=$!
  "$python" tools/train_toy.py warm --folder "$run" >"$run/warm.log" 2>&1 &
  compiler=$!
  "$python" tools/train_toy.py draw --folder "$run" --gpus "$gpus" ${ASSETS:+--assets "$ASSETS"} >"$run/draw.log" 2>&1
  wait "$rasteriser" || { cat "$run/gsplat.log"; exit 1; }
  wait "$compiler" || echo "the networks could not be compiled ahead of time, see $run/warm.log"
  touch "$run/prepared"
  echo "prepared in $((SECONDS - began)) s"
fi

left=$((slice - (SECONDS - began) - 45)) # the report and the export at the end of a slice take less than that
"$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" tools/train_toy.py train --folder "$run" \
  --vae-seconds "$vae" --unet-seconds "$unet" --stop-after "$left" >>"$run/train.log" 2>&1 || { tail -40 "$run/train.log"; exit 1; }
grep -E "^20[0-9-]+ " "$run/train.log" || true
