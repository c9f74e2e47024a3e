"""Commands of the command line, one file each: `run(argv) -> exit status`."""
