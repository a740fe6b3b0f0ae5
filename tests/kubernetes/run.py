#!/usr/bin/env python3
"""Runs the tests of this folder: `make test-kubernetes`.

  run.py [--quick] [NAME...]   modules (test_cluster), classes (test_cluster.Nodes) or tests; all of them without a name

`--quick` leaves out what needs nodes or more than a minute. The last line says how many passed, failed and were skipped.
"""

import argparse
import os
import pathlib
import sys
import time
import unittest

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import isolation
from processes import terminate_on_signals


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what needs neither nodes nor more than a minute")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    isolation.enter()
    terminate_on_signals()
    if options.quick:
        os.environ["RUG_LAB_QUICK"] = "1"
    start = time.monotonic()
    loader = unittest.defaultTestLoader
    suite = loader.loadTestsFromNames(options.names) if options.names else loader.discover(str(HERE))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, failfast=False).run(suite)
    failed = len(result.failures) + len(result.errors)
    skipped = len(result.skipped)
    passed = result.testsRun - failed - skipped
    print(f"{max(passed, 0)} passed, {failed} failed, {skipped} skipped in {time.monotonic() - start:.0f} s", flush=True)
    return 1 if failed or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
