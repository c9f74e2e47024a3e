"""Where batches come from: one source a file, imported when it is used."""
