"""Schedule of a run as pure arithmetic: phases, rounds, learning rates, and the cursor of the training."""
