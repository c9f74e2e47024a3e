"""Aggregation of the clients: sums, communication between ranks, the global model."""
