"""Sources of batches, one per file, imported on use."""
