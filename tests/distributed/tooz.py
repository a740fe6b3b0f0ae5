"""A process of tooz that a test commands: one JSON command per line in, one JSON answer per line out.

Arguments: coordination URL, Rug's group, member id. It uses nothing but tooz's public API, as a service would.
"""

import json
import sys

from tooz import coordination
from tooz import partitioner


class Peer:
    def __init__(self, url, group, member):
        self.groups = {
            "workers": (group + ".workers").encode(),
            "coordinators": (group + ".coordinators").encode(),
        }
        self.tooz = coordination.get_coordinator(url, member.encode())
        self.tooz.start()
        self.seen = []
        self.elected = 0

    def members(self, group):
        return sorted(m.decode() for m in self.tooz.get_members(self.groups[group]).get())

    def capabilities(self, group):
        group = self.groups[group]
        members = self.tooz.get_members(group).get()
        return {m.decode(): self.tooz.get_member_capabilities(group, m).get() for m in members}

    def leader(self, group):
        leader = self.tooz.get_leader(self.groups[group]).get()
        return leader and leader.decode()

    def watch(self, group):
        note = lambda what: lambda event: self.seen.append([what, event.member_id.decode()])
        self.tooz.watch_join_group(self.groups[group], note("joined"))
        self.tooz.watch_leave_group(self.groups[group], note("left"))

    def contend(self):
        def won(event):
            self.elected += 1

        self.tooz.watch_elected_as_leader(self.groups["coordinators"], won)

    def poll(self):
        """What the watchers have seen so far, in order, and how often it was elected."""
        self.tooz.run_watchers()
        return {"seen": self.seen, "elected": self.elected}

    def owners(self, keys):
        ring = partitioner.Partitioner(self.tooz, self.groups["workers"])
        found = [ring.members_for_object(key) for key in keys]
        ring.stop()
        return ["".join(m.decode() for m in members) for members in found]

    def join(self, capabilities):
        self.tooz.join_group(self.groups["workers"], capabilities).get()

    def publish(self, capabilities):
        self.tooz.update_capabilities(self.groups["workers"], capabilities).get()

    def leave(self):
        self.tooz.leave_group(self.groups["workers"]).get()

    def stand_down(self):
        return self.tooz.stand_down_group_leader(self.groups["coordinators"])


def main():
    peer = Peer(*sys.argv[1:])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"ok": getattr(peer, command.pop("do"))(**command)}
        except Exception as error:
            answer = {"error": "%s: %s" % (type(error).__name__, error)}
        print(json.dumps(answer), flush=True)


main()
