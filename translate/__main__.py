"""``accelerate launch -m translate fit …``: the same command line as ``expresser translate``."""

import sys

from expresser.cli import main

if __name__ == "__main__":
    main(["translate", *sys.argv[1:]])
