#!/usr/bin/env bash
# One slice of training the built-in toy model on this machine's GPUs; call it again until it says that it is done.
#
#   tools/train_toy.sh RUN SECONDS [UNET_SECONDS [VAE_SECONDS]]
#
# RUN: a folder that is kept between slices. SECONDS: of this slice, set-up included. The two training times are those of
# all slices together: the learning rate falls to zero over them, so rather lower UNET_SECONDS in the last slice than stop
# before it is spent. START=FOLDER starts from the weights that an earlier run has left in its export folder. Logs go to
# RUN/*.log line by line, the result to RUN/export.
set -euo pipefail
began=$SECONDS
run=$(mkdir -p "$1" && cd "$1" && pwd) slice=$2 unet=${3:-860} vae=${4:-90}
python=${PYTHON:-python3}
gpus=$(nvidia-smi --list-gpus | wc -l)
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=4
export MAX_JOBS=${MAX_JOBS:-$(nproc)} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$run/compiled}
cd "$(dirname "$0")/.."

logged() { # runs a command into the log and shows the log until it ends, whatever it leaves running
  touch "$run/train.log"
  "$@" >>"$run/train.log" 2>&1 &
  local process=$!
  tail -n 0 -f --pid="$process" "$run/train.log" || true
  wait "$process"
}

warm() { # compiles one kind of step into the cache that the training finds filled, each kind in a process of its own
  CUDA_VISIBLE_DEVICES=$(($2 % gpus)) "$python" tools/train_toy.py warm --part "$1" --folder "$run" >"$run/warm_$1.log" 2>&1
}

if [ ! -f "$run/prepared" ]; then
  "$python" -c 'from gsplat.cuda._backend import _C; assert _C is not None' >"$run/gsplat.log" 2>&1 &
  rasteriser=$!
  warm vae 0 &
  compiler=$!
  # The U-Net's steps are needed after the VAE is trained: nothing waits for them here.
  warm unet 1 &
  warm flat 1 &
  "$python" tools/train_toy.py draw --folder "$run" --gpus "$gpus" ${ASSETS:+--assets "$ASSETS"} >"$run/draw.log" 2>&1 ||
    { tail -20 "$run/draw.log"; exit 1; }
  echo "drawn after $((SECONDS - began)) s"
  wait "$rasteriser" || { tail -20 "$run/gsplat.log"; exit 1; }
  echo "rasteriser built after $((SECONDS - began)) s"
  wait "$compiler" || { echo "the networks could not be compiled ahead of time"; tail -20 "$run/warm_vae.log"; }
  grep -E "compiled|captured" "$run/warm_vae.log" || true
  if ! grep -q "and captured" "$run/warm_vae.log" && [ -z "${EAGER_OK:-}" ]; then
    echo "the steps could not be captured as CUDA graphs (see above), so training would be several times slower;"
    echo "mend that, or accept it with EAGER_OK=1"
    exit 1
  fi
  touch "$run/prepared"
  echo "prepared in $((SECONDS - began)) s"
fi

left=$((slice - (SECONDS - began) - 65)) # starting, and the report and the export at the end, take less than that
logged "$python" -m torch.distributed.run --standalone --virtual-local-rank --nproc_per_node "$gpus" tools/train_toy.py \
  train --folder "$run" --vae-seconds "$vae" --unet-seconds "$unet" --stop-after "$left" ${START:+--weights "$START"}

left=$((slice - (SECONDS - began)))
if ! grep -q '"done": true' "$run/export/progress.json" 2>/dev/null; then
  echo "not done: call it again"
elif [ -f "$run/export/toy_classifier.safetensors" ]; then
  echo "done"
elif [ "$left" -lt 240 ]; then
  echo "the model is done: call it again for the classifier"
else
  logged "$python" tools/train_toy.py classifier --folder "$run" --stop-after "$((left - 60))"
  echo "done"
fi
