"""Random draws of a module, each a function of the run's seed, the client, the local step, the call and the element."""
