"""Container images without a registry and without a builder: an OCI archive of files that are there, for `ctr images import`."""

import gzip
import hashlib
import io
import json
import pathlib
import subprocess
import tarfile

PAUSE = "lab.local/pause:1"
TOOL = "lab.local/tool:1"


def write(archive, name, files, entrypoint=(), command=(), user="65532:65532", environment=(), links=None):
    """Writes an image named `name` into the file `archive`.

    `files` maps places in the image to files here; `links` maps places to what they are symbolic links to. One layer, all files owned by root
    and readable by all. Returns `archive`.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        folders = {"tmp"}
        for place in [*files, *(links or {})]:
            folders.update(str(parent) for parent in pathlib.PurePath(place.lstrip("/")).parents if str(parent) != ".")
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for place, source in files.items():
            source = pathlib.Path(source)
            entry = tarfile.TarInfo(place.lstrip("/"))
            entry.size, entry.mode = source.stat().st_size, 0o755 if source.stat().st_mode & 0o100 else 0o644
            with open(source, "rb") as opened:
                tar.addfile(entry, opened)
        for place, target in (links or {}).items():
            entry = tarfile.TarInfo(place.lstrip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    plain = layer.getvalue()
    blobs = {}

    def blob(data, kind):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": user, "Entrypoint": list(entrypoint), "Cmd": list(command), "Env": list(environment) or ["PATH=/usr/bin:/bin:/"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]},
    }
    packed = blob(gzip.compress(plain, 1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [packed],
    }
    described = blob(json.dumps(manifest).encode(), manifest["mediaType"])
    described["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [described]}
    with tarfile.open(archive, "w") as tar:
        for place, data in [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", json.dumps(index).encode())] + [
            (f"blobs/sha256/{digest}", data) for digest, data in blobs.items()
        ]:
            entry = tarfile.TarInfo(place)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive


def libraries(program):
    """The shared libraries of a program and its loader, by their places; none for a static one."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    words = [word for line in done.stdout.splitlines() for word in line.split() if word.startswith("/")]
    return {word: pathlib.Path(word).resolve() for word in words} if done.returncode == 0 else {}


def programs(archive, name, folder, names, entrypoint=(), place="/usr/local/bin", **options):
    """Writes an image of programs that were built here, for example of target/debug, with the libraries that they need.

    It stands in for the image that `make image` builds where there is no time for that, or no builder.
    """
    files = {}
    for one in names:
        program = pathlib.Path(folder, one)
        files[f"{place}/{one}"] = program
        files.update(libraries(program))
    return write(archive, name, files, entrypoint, environment=(f"PATH={place}:/usr/bin:/bin",), **options)


def tool(binaries, folder):
    """The laboratory's own images: the container that keeps a pod's network, and what containers of tests do."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    program = {"/tool": pathlib.Path(binaries) / "tool"}
    return [
        write(folder / "pause.tar", PAUSE, program, ["/tool", "pause"]),
        write(folder / "tool.tar", TOOL, program, ["/tool"], ["sleep", "86400"]),
    ]
