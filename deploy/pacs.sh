#!/usr/bin/env bash
# Starts Orthanc, the watch and the service on loopback, sends the example, and says where to look. Ctrl-C ends all three.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in Orthanc storescu; do
  command -v "$tool" >/dev/null || { echo "pacs: $tool is missing: apt-get install orthanc orthanc-dicomweb dcmtk" >&2; exit 2; }
done
state=${OVERREAD_STATE:-$PWD/.overread}
mkdir -p "$state/pacs"
chmod 700 "$state" "$state/pacs"
export OVERREAD_STATE="$state"
cp deploy/orthanc.json "$state/pacs/"  # Orthanc keeps its images beside its configuration
echo change-me > "$state/pacs/password"
export OVERREAD_PACS_URL=http://127.0.0.1:8042/dicom-web OVERREAD_PACS_ORTHANC_URL=http://127.0.0.1:8042
export OVERREAD_PACS_USER=overread OVERREAD_PACS_PASSWORD_FILE="$state/pacs/password"
export OVERREAD_PACS_RESULTS=${OVERREAD_PACS_RESULTS:-sr,sc} OVERREAD_PACS_POLL_SECONDS=1
export OVERREAD_PACS_HISTORY=true  # the example may come before the watch has looked for the first time
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; wait' EXIT
(cd "$state/pacs" && exec Orthanc orthanc.json > orthanc.log 2>&1) & started+=($!)
until curl -sf -u overread:change-me http://127.0.0.1:8042/system > "$state/pacs/system.json"; do
  kill -0 "${started[0]}" 2>/dev/null || { tail -3 "$state/pacs/orthanc.log" >&2; exit 1; }
  sleep 0.3
done
overread watch 2> "$state/pacs/watch.log" & started+=($!)
overread serve --port "${PORT:-3000}" & started+=($!)
overread example --out "$state/pacs" > "$state/pacs/examples.txt"
storescu -aec ORTHANC 127.0.0.1 4242 "$state/pacs/chest-phantom.dcm"
echo "pacs: a drawn chest was sent; its study, with our results in a minute at most: http://127.0.0.1:8042/app/explorer.html (overread, change-me)"
echo "pacs: what the watch does: $state/pacs/watch.log; the service: http://127.0.0.1:${PORT:-3000}/"
wait -n "${started[@]}"
