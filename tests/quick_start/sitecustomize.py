"""Python imports this when it starts. With fewer garbage collections libraries are imported a fifth faster.

A helper process of nnU-Net's imports what it works with, and not again all that the command imports which started it.
"""

import gc
import sys

gc.set_threshold(100_000, 50, 100)

if "--multiprocessing-fork" in sys.orig_argv:
    from multiprocessing import spawn

    of_main = spawn._fixup_main_from_path
    spawn._fixup_main_from_path = lambda path: None if "/bin/nnUNetv2_" in path else of_main(path)
