"""The rounds of a run: plan, local steps, averaging, evaluation, saving."""
