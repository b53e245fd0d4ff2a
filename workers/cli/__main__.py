"""`python -m workers.cli`: the same as `pushpush`."""

from workers.cli.main import main

main()
