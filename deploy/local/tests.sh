#!/bin/sh
# `make test`: the tests that need RabbitMQ and PostgreSQL, and beside them those that need neither. Most of the latter
# wait for peers that stall on purpose, so that side by side they take little more than half the time.
set -u
cd "$(dirname "$0")/../.."

mkdir -p .run
log=$(mktemp .run/tests-XXXXXX)
.venv/bin/python -m pytest -q -m "not services" tests/integration tests/e2e >"$log" 2>&1 &
beside=$!
trap 'rm -f "$log"' EXIT
trap 'kill "$beside" 2>/dev/null; exit 130' INT TERM HUP
.venv/bin/python -m pytest -q -m services tests/integration tests/e2e "$@"
first=$?
printf '\nTests without RabbitMQ and PostgreSQL, which ran beside these:\n'
wait "$beside"
second=$?
cat "$log"
if [ "$first" -ne 0 ]; then exit "$first"; fi
exit "$second"
