"""The journal: what happened to mail, from `mail.events` into PostgreSQL."""
