"""What this package needs of other libraries beyond their public surface, in one place."""
