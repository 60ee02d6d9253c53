#!/bin/sh
# A processing module of Mercure: reads one series from MERCURE_IN_DIR, writes SEG, Parametric Map and report to
# MERCURE_OUT_DIR, from where Mercure dispatches them.
#
# The contract is that of `ucseg segment`: exit code 0 and JSON on standard output, or a code that says who can do
# something about it (docs/errors.md) and one JSON object with the error. Mercure puts series whose module ends with
# another code than 0 aside as failed, and shows result.json, which holds no patient data.
#
# Rule in Mercure: processing module "ucseg", trigger "series", for instance with the rule
#     @Modality@ == 'CT' and @SliceThickness@ != ''
# Settings of the module may name a model folder and more options of `ucseg segment` by UCSEG_MODEL and UCSEG_OPTIONS.
set -eu

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

status=0
# shellcheck disable=SC2086  # the options are words
ucseg segment "$MERCURE_IN_DIR" --out "$results" --json ${UCSEG_MODEL:+--model "$UCSEG_MODEL"} ${UCSEG_OPTIONS:-} \
    > "$MERCURE_OUT_DIR/result.json" || status=$?
if [ "$status" -ne 0 ]; then
    exit "$status"
fi
for object in "$results"/*.dcm; do
    cp "$object" "$MERCURE_OUT_DIR/"
done
