"""Traces of a run and plots of them. They read and write files, never live models."""
