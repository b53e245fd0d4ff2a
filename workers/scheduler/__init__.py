"""The scheduler: wakes waiting mail when it is due, and prunes."""
