"""The command line: `pushpush ...`."""
