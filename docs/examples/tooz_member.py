#!/usr/bin/env python3
"""A Python service that shares the groups of a Rug cluster, through python-tooz. See docs/tooz.md.

    pip install 'tooz>=9' kazoo msgpack
    tooz_member.py --url zookeeper://127.0.0.1:2181/?timeout=6 COMMAND

    watch            tells who works with which weight and who leads, and every change of it
    owners KEY...    names the owner of each placement key, as `placement.strategy = "ring"` places it
    join NAME        takes part in the ring of workers, and tells which part of it is its own
    lead NAME        contends with Rug's coordinators, and tells whether it leads

`watch`, `join` and `lead` go on until SIGTERM or Ctrl-C; then they leave at once instead of after a session timeout.
"""

import argparse
import signal
import sys
import threading
import time

import tooz
from kazoo.exceptions import KazooException
from tooz import coordination, hashring

# tooz keeps the contenders of a group in it under this name, and takes that for a member.
LEADER = b"leader"
# Rug counts a greater weight as this one.
MAX_WEIGHT = 1024
# How often to look, in seconds. Of what comes and goes between two looks nothing is seen.
PAUSE = 0.5

stopping = threading.Event()


def say(*words):
    print(*words, flush=True)


def connect(url, name=b""):
    """One session. When it has expired, tooz neither says so nor joins anew: make another one."""
    session = coordination.get_coordinator(url, name)
    session.start()
    return session


def weights(session, group):
    """The members of a group and their weights, as Rug takes them."""
    found = {}
    for member in session.get_members(group).get() - {LEADER}:
        try:
            published = session.get_member_capabilities(group, member).get()
        except coordination.MemberNotJoined:
            continue  # It has left since.
        weight = published.get("weight", 1) if isinstance(published, dict) else 1
        found[member] = min(max(int(weight), 0), MAX_WEIGHT) if isinstance(weight, int) else 1
    return found


def ring_of(members):
    """The ring. Always made of all members, by name: one that is changed step by step goes wrong where weights change or
    points meet, and tooz's own Partitioner does not get over a member called `leader`."""
    ring = hashring.HashRing([])
    for member in sorted(members):
        ring.add_node(member, members[member])
    return ring


def owner(ring, key):
    """Who owns a placement key; None on an empty ring."""
    return next(iter(ring.get_nodes(key.encode())), b"").decode() or None


def leader(session, group):
    found = session.get_leader(group).get()
    return found and found.decode()


def watch(session, workers, coordinators):
    before = (None, None)
    while not stopping.wait(PAUSE if before[0] is not None else 0):
        now = (weights(session, workers), leader(session, coordinators))
        if now != before:
            members = ["%s=%d" % (m.decode(), now[0][m]) for m in sorted(now[0])]
            say("workers", *members)
            say("leader", now[1] or "-")
        before = now


def owners(session, workers, keys):
    ring = ring_of(weights(session, workers))
    for key in keys:
        say(key, owner(ring, key) or "-")


def join(session, workers, name, weight, patience):
    """A member until the session is over or we are stopped."""
    deadline = time.monotonic() + patience
    while True:
        try:
            session.join_group(workers, {"weight": weight}).get()
            break
        except coordination.MemberAlreadyExist:
            # An earlier life of ours keeps the name for as long as its session lasts; anybody else, for longer.
            if time.monotonic() > deadline or stopping.wait(PAUSE):
                raise
    say("joined", name)
    told = None
    while not stopping.wait(PAUSE):
        members = weights(session, workers)
        if name.encode() not in members:
            raise tooz.ToozError("%s is no member any more" % name)
        if members != told:
            ring, sample = ring_of(members), ["key-%d" % n for n in range(1000)]
            mine = sum(owner(ring, key) == name for key in sample)
            say("owns", "%.1f %%" % (100 * mine / len(sample)))
        told = members
    session.leave_group(workers).get()
    say("left")


def lead(session, coordinators, name):
    """Contends until we are stopped. What only a leader may do belongs where `leads` is, and has to end there."""
    elected = []
    session.watch_elected_as_leader(coordinators, elected.append)
    told = None
    while not stopping.wait(PAUSE if told else 0):
        session.run_watchers()
        # Asked each time: after its session has expired, tooz still takes itself for the leader.
        now = leader(session, coordinators)
        if elected and now != name:
            raise tooz.ToozError("%s was elected, and %s leads" % (name, now))
        if now != told:
            say("leads" if now == name else "stands by", now or "-")
        told = now
    session.stand_down_group_leader(coordinators)
    say("stood down")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="zookeeper://127.0.0.1:2181/?timeout=6", help="coordination.url of Rug")
    parser.add_argument("--group", default="rug", help="coordination.group of Rug")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("watch")
    commands.add_parser("owners").add_argument("key", nargs="+")
    member = commands.add_parser("join")
    member.add_argument("name")
    member.add_argument("--weight", type=int, default=1)
    member.add_argument("--patience", type=float, default=30, help="seconds to wait for the name to become free")
    commands.add_parser("lead").add_argument("name")
    args = parser.parse_args()
    workers, coordinators = (("%s.%s" % (args.group, part)).encode() for part in ("workers", "coordinators"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())

    while not stopping.is_set():
        session = None
        try:
            session = connect(args.url, getattr(args, "name", "").encode())
            if args.command == "watch":
                watch(session, workers, coordinators)
            elif args.command == "owners":
                return owners(session, workers, args.key)
            elif args.command == "join":
                join(session, workers, args.name, args.weight, args.patience)
            else:
                lead(session, coordinators, args.name)
        except coordination.MemberAlreadyExist:
            sys.exit("somebody else has the name %s" % args.name)
        except (tooz.ToozError, KazooException) as problem:
            print("beginning anew:", problem, file=sys.stderr, flush=True)
            stopping.wait(PAUSE)
        finally:
            if session is not None:
                session.stop()


if __name__ == "__main__":
    main()
