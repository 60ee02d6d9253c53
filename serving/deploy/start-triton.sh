#!/bin/sh
# The start line of the image `triton`; flags given to it are added.
#
# What changes or reveals the server is closed by a header whose value is drawn here and told to nobody. Model
# configurations stay open, since clients find the digest of the model and the engine in them. There are no core files,
# since they would hold pixels.
set -eu
ulimit -c 0
closed=model-repository,statistics,trace,logging,shared-memory
key="ucseg-admin=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
exec tritonserver \
  "--model-repository=${UCSEG_REPOSITORY:-/models}" \
  --disable-auto-complete-config \
  --exit-on-error=true \
  --strict-readiness=true \
  --model-control-mode=none \
  --allow-sagemaker=false \
  --allow-vertex-ai=false \
  "--http-restricted-api=$closed:$key" \
  "--grpc-restricted-protocol=$closed:$key" \
  "$@"
