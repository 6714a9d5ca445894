"""What a run would cost, computed from shapes alone: `oialr plan`."""
