"""``accelerate launch -m pretrain RECIPE …``: the same command line as ``expresser pretrain``."""

import sys

from expresser.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
