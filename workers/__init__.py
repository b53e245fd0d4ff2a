"""The rooms: one folder, one process, one Deployment."""
