"""One rank of several runs, one after the other: what torchrun starts in tests.

usage: python -m tests.rank_program WORDS ..., each argument the words of one command line as a JSON list
"""

from __future__ import annotations

import json
import sys

import torch

from fastlocal.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for words in sys.argv[1:]:
        status = main(json.loads(words))
        if status:
            sys.exit(status)
