"""The router: rules -> one delivery per next hop -> the delivery workers."""
