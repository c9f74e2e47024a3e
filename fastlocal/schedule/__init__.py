"""What changes over a run: the learning rate and the number of local steps per communication round."""
