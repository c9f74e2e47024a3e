"""What every room uses: errors, signals, atomic files, facts of the machine, the user's disk cache."""
