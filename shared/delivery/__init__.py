"""What both delivery rooms share: the way of one delivery, names to addresses, and TLS contexts."""
