"""Owners as python-tooz names them: reads one JSON object from stdin, writes one line of owner indices per member set.

Input: {"keys": N, "sets": [[[name, weight], ...], ...]}. Key i is the UUID made of md5("rug-peer-<i>").
Output per set: N indices into its members, separated by spaces.
"""

import hashlib
import json
import sys
import uuid

from tooz import hashring


def main():
    task = json.load(sys.stdin)
    keys = [
        str(uuid.UUID(bytes=hashlib.md5(b"rug-peer-%d" % i).digest())).encode()
        for i in range(task["keys"])
    ]
    for members in task["sets"]:
        ring = hashring.HashRing([])
        for name, weight in members:
            ring.add_node(name, weight)
        index = {name: str(i) for i, (name, _) in enumerate(members)}
        print(" ".join(index[next(iter(ring.get_nodes(key)))] for key in keys))


main()
