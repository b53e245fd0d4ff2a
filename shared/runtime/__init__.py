"""What a process needs around its job: settings, log, health, signals, clock and chance."""
