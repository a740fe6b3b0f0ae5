"""Enforces NetworkPolicies on the nodes: a stand-in for what a network plugin does, by rules of nftables on each node.

Packets of connections that are established pass. For a pod that a policy selects, the rest has to be allowed by a rule: where it comes out of
the pod (egress) and where it goes into it (ingress), in two chains that both have to let it pass. What a node sends itself, the probes of its kubelet
above all, is not filtered. Addresses are those behind Services, as policies are applied after the translation.
"""

import json
import threading

from processes import Failure, run

TABLE = "lab_policies"


def selects(selector, labels):
    """Whether a label selector selects; an empty one selects all."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions") or []:
        key, operator, listed = one["key"], one["operator"], one.get("values") or []
        holds = {
            "In": key in labels and labels[key] in listed,
            "NotIn": key not in labels or labels[key] not in listed,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not holds:
            return False
    return True


class State:
    """What the API server says at a moment."""

    def __init__(self, pods, namespaces, policies):
        alive = [pod for pod in pods if pod["status"].get("podIP") and pod["status"].get("phase") in ("Pending", "Running")]
        self.pods = [pod for pod in alive if not pod["spec"].get("hostNetwork")]
        self.namespaces = {one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in namespaces}
        self.policies = policies

    def chosen(self, namespace, peer):
        """The pods that a peer of a policy in `namespace` means."""
        for pod in self.pods:
            place = pod["metadata"]["namespace"]
            if "namespaceSelector" in peer:
                if not selects(peer["namespaceSelector"], self.namespaces.get(place, {})):
                    continue
            elif place != namespace:
                continue
            if selects(peer.get("podSelector") or {}, pod["metadata"].get("labels") or {}):
                yield pod


def ports(rule, pod):
    """The matches for the ports of a rule; names are those of the pod that is connected to. No ports match all."""
    listed = rule.get("ports") or []
    if not listed:
        return [""]
    found = []
    for one in listed:
        protocol, port = one.get("protocol", "TCP").lower(), one.get("port")
        if port is None:
            found.append(f"meta l4proto {protocol} ")
            continue
        if isinstance(port, str):
            named = [
                declared["containerPort"]
                for container in (pod or {"spec": {"containers": []}})["spec"]["containers"]
                for declared in container.get("ports") or []
                if declared.get("name") == port and declared.get("protocol", "TCP").lower() == protocol
            ]
            found += [f"{protocol} dport {number} " for number in named]
        else:
            found.append(f"{protocol} dport {port}{'-' + str(one['endPort']) if 'endPort' in one else ''} ")
    return found


def allowed(state, policy, rule, pod, direction):
    """The lines of nftables that let pass what one rule of a policy allows to or from `pod`."""
    peers = rule.get("from" if direction == "ingress" else "to") or []
    side = "saddr" if direction == "ingress" else "daddr"
    lines = []

    def add(match, target):
        lines.extend(f"    {match}{port}accept" for port in ports(rule, target))

    if not peers:
        # A port's name means nothing where the target may be anything.
        add("", pod if direction == "ingress" else None)
    for peer in peers:
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            excepted = block.get("except") or []
            without = f"ip {side} != {{ {', '.join(excepted)} }} " if excepted else ""
            add(f"ip {side} {block['cidr']} {without}", pod if direction == "ingress" else None)
            continue
        for other in state.chosen(policy["metadata"]["namespace"], peer):
            add(f"ip {side} {other['status']['podIP']} ", pod if direction == "ingress" else other)
    return lines


def kinds(policy):
    """The directions that a policy is for; where it does not say, egress counts if it has rules for it."""
    return policy["spec"].get("policyTypes") or ["Ingress", *(["Egress"] if policy["spec"].get("egress") else [])]


def ruleset(state, node):
    """The rules of one node."""
    chains = {"ingress": [], "egress": []}
    for pod in state.pods:
        if pod["spec"].get("nodeName") != node:
            continue
        place, labels, address = pod["metadata"]["namespace"], pod["metadata"].get("labels") or {}, pod["status"]["podIP"]
        own = [one for one in state.policies if one["metadata"]["namespace"] == place and selects(one["spec"].get("podSelector") or {}, labels)]
        for direction, side in (("ingress", "daddr"), ("egress", "saddr")):
            ruling = [one for one in own if direction.capitalize() in kinds(one)]
            if not ruling:
                continue
            lines = [line for one in ruling for rule in one["spec"].get(direction) or [] for line in allowed(state, one, rule, pod, direction)]
            chains[direction].append((f"{direction}_{address.replace('.', '_')}", f"ip {side} {address}", sorted(set(lines))))
    text = [f"table ip {TABLE} {{}}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
    for priority, direction in enumerate(("egress", "ingress")):
        for name, _, lines in chains[direction]:
            text += [f"  chain {name} {{", *lines, "    counter drop", "  }"]
        text += [f"  chain {direction} {{", f"    type filter hook forward priority {priority}; policy accept;", "    ct state established,related accept"]
        text += [f"    {match} jump {name}" for name, match, _ in chains[direction]]
        text.append("  }")
    return "\n".join([*text, "}", ""])


class Policies:
    """Keeps the rules of all nodes as the API server's objects say, a second behind."""

    def __init__(self, lab):
        self.lab, self.applied = lab, {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def start(self):
        self.thread.start()
        return self

    def stop(self):
        self.ended.set()
        self.thread.join(10)

    def follow(self):
        while not self.ended.wait(1):
            try:
                self.apply()
            except (OSError, ValueError, Failure) as error:
                with open(self.lab.control.logs / "policies.log", "a", encoding="utf-8") as log:
                    log.write(f"{error}\n")

    def apply(self):
        """Brings the rules of all nodes up to date."""
        paths = ("/api/v1/pods", "/api/v1/namespaces", "/apis/networking.k8s.io/v1/networkpolicies")
        state = State(*(json.loads(self.lab.control.request(path))["items"] for path in paths))
        for node in self.lab.nodes:
            if node.holder is None:
                self.applied.pop(node.name, None)
                continue
            text = ruleset(state, node.name)
            if self.applied.get(node.name) != text:
                run(["nsenter", "--target", str(node.first(node.holder)), "--net", "--", "nft", "-f", "-"], given=text)
                self.applied[node.name] = text
