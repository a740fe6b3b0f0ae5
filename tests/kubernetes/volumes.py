"""Makes volumes for claims: a stand-in for a provisioner of volumes that are local to a node.

The storage class `standard` is the default one and waits for a pod, as such classes do. A volume is a folder on the node that the scheduler chose, and
binds the pod to it. The volume of a claim that is gone is deleted with its folder.
"""

import json
import threading

from processes import Failure

PROVISIONER = "lab.rug.dev/local"
CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": PROVISIONER,
    "volumeBindingMode": "WaitForFirstConsumer",
}
SELECTED = "volume.kubernetes.io/selected-node"
WANTED = "volume.kubernetes.io/storage-provisioner"


def volume(claim, node):
    """The volume for a claim on a node."""
    meta = claim["metadata"]
    name = f"pvc-{meta['uid']}"
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"],
            "volumeMode": "Filesystem",
            "storageClassName": "standard",
            "persistentVolumeReclaimPolicy": "Delete",
            "local": {"path": f"/var/lib/volumes/{name}"},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
    }


class Volumes:
    """The provisioner, half a second behind what the API server says."""

    def __init__(self, lab):
        self.lab = lab
        self.made = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def start(self):
        self.lab.apply(CLASS)
        self.thread.start()
        return self

    def stop(self):
        self.ended.set()
        self.thread.join(10)

    def follow(self):
        while not self.ended.wait(0.5):
            try:
                self.provision()
                self.reclaim()
            except (OSError, ValueError, Failure) as error:
                with open(self.lab.control.logs / "volumes.log", "a", encoding="utf-8") as log:
                    log.write(f"{error}\n")

    def read(self, path):
        return json.loads(self.lab.control.request(path))["items"]

    def provision(self):
        """Makes the volumes that are waited for."""
        for claim in self.read("/api/v1/persistentvolumeclaims"):
            notes = claim["metadata"].get("annotations") or {}
            name = notes.get(SELECTED)
            if claim["status"].get("phase") != "Pending" or notes.get(WANTED) != PROVISIONER or not name or claim["metadata"]["uid"] in self.made:
                continue
            node = next((one for one in self.lab.nodes if one.name == name), None)
            if node is None:
                continue
            one = volume(claim, name)
            node.inside("mkdir", "-p", "-m", "777", one["spec"]["local"]["path"])
            self.lab.apply(one)
            self.made.add(claim["metadata"]["uid"])

    def reclaim(self):
        """Deletes volumes whose claims are gone."""
        for one in self.read("/api/v1/persistentvolumes"):
            if one["status"].get("phase") != "Released" or one["metadata"].get("deletionTimestamp"):
                continue
            if (one["metadata"].get("annotations") or {}).get("pv.kubernetes.io/provisioned-by") != PROVISIONER:
                continue
            host = one["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"][0]
            for node in self.lab.nodes:
                if node.name == host:
                    node.inside("rm", "-rf", one["spec"]["local"]["path"])
            self.lab.kubectl("delete", "persistentvolume", one["metadata"]["name"], "--wait=false")
