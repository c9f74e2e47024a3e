"""Several runs as replicas of one job, their directory, and the choice of those that go on."""
