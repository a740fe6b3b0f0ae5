"""What a python-tooz service does when a member joins: a new ring, the owner of every key, and the difference.

Arguments: number of keys, number of members before the join. Prints one JSON object:
{"seconds": of the recompute alone, "moved": keys with another owner}.
"""

import json
import sys
import time
import uuid

from tooz import hashring


def ring_of(members):
    ring = hashring.HashRing([])
    for member in members:
        ring.add_node(member)
    return ring


def owner(ring, key):
    return next(iter(ring.get_nodes(key)))


def main():
    count, members = int(sys.argv[1]), int(sys.argv[2])
    names = ["rug-host-%04d.example" % i for i in range(members + 1)]
    keys = [str(uuid.UUID(int=i)).encode() for i in range(count)]
    before = ring_of(names[:-1])
    owners = [owner(before, key) for key in keys]
    started = time.process_time()
    after = ring_of(names)
    moved = sum(1 for key, old in zip(keys, owners) if owner(after, key) != old)
    print(json.dumps({"seconds": time.process_time() - started, "moved": moved}))


main()
