"""Other packages beside fastlocal, each in an environment of its own."""
