"""Tools of every room: errors, signals, atomic files, facts of the machine, the user's disk cache."""
