"""Choose the fastest executor and the fastest convolutions by timing them on the shapes of a run."""
