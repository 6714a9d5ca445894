"""Traces of a run and plots of them, from files; plans of a run, from a config. Never live models."""
