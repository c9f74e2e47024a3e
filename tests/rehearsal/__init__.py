"""A CUDA device that is not there: its tensors hold values on the CPU, and what a GPU would refuse is refused."""
