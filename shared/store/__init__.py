"""PostgreSQL: rules, routers, waiting mail and large bodies."""
