"""The smtp room: delivers by SMTP."""
