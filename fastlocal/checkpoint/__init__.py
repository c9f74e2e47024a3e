"""Run directory, model files, and the saved states of a run."""
