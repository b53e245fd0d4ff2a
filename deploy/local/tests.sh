#!/bin/sh
# `make test`: four parts side by side, since most of them is waiting: for services that restart, for peers that stall on
# purpose. Each has a RabbitMQ and a PostgreSQL of its own, where it needs them.
set -u
cd "$(dirname "$0")/../.."

mkdir -p .run
logs=$(mktemp -d .run/tests-XXXXXX)
trap 'rm -rf "$logs"' EXIT
pytest=".venv/bin/python -m pytest -q"  # a command, not a function: what is ended must be the tests themselves

$pytest -m panel tests/integration tests/e2e >"$logs/panel" 2>&1 &
panel=$!
$pytest -m "fleet and not panel" tests/e2e >"$logs/fleet" 2>&1 &
fleet=$!
$pytest -m "not panel and not services" tests/integration >"$logs/peers" 2>&1 &
peers=$!
trap 'kill "$panel" "$fleet" "$peers" 2>/dev/null; exit 130' INT TERM HUP

$pytest -m "services and not panel" tests/integration "$@"
failed=$?
printf '\nThe other parts, which run beside this one:\n'
wait "$panel" || failed=$?
wait "$fleet" || failed=$?
wait "$peers" || failed=$?
cat "$logs"/*
exit "$failed"
