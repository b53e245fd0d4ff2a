"""What concerns the fleet as a whole: broker and store together."""
