"""The sources of batches, one a file. A source is imported when it is used."""
