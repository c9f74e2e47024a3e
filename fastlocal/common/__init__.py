"""Tools that every room uses: errors, signals, atomic files, memory of the machine, the user's disk cache."""
