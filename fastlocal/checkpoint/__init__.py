"""The run directory, model files, and the state from which a run continues."""
