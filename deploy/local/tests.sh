#!/bin/sh
# `make test`: two halves side by side, in little more than half the time. One has what needs RabbitMQ and PostgreSQL, but
# the panel; the other the panel, and all that waits for peers which stall on purpose.
set -u
cd "$(dirname "$0")/../.."

mkdir -p .run
log=$(mktemp .run/tests-XXXXXX)
.venv/bin/python -m pytest -q -m "not services or panel" tests/integration tests/e2e >"$log" 2>&1 &
beside=$!
trap 'rm -f "$log"' EXIT
trap 'kill "$beside" 2>/dev/null; exit 130' INT TERM HUP
.venv/bin/python -m pytest -q -m 'services and not panel' tests/integration tests/e2e "$@"
first=$?
printf '\nThe other half, which runs beside this one:\n'
wait "$beside"
second=$?
cat "$log"
if [ "$first" -ne 0 ]; then exit "$first"; fi
exit "$second"
