"""The processes of a run: how they find each other, exchange values, and notice that one is missing."""
