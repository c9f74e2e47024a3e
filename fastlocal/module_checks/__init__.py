"""Check a user's module and loss: first steps by plain torch and by the executors must agree."""
