"""Checks of a user's module and loss: a few first steps by plain torch and by our executors must agree."""
