"""What every room uses: mail (pure), broker, store and runtime."""
