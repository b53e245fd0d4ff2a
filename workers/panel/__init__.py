"""The panel: web pages and the admin API."""
